# cython: language_level=3
"""Timed loops over product code, without Python in the loop."""
from libc.stdint cimport int64_t, uint32_t, uint64_t, uint8_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset
from posix.time cimport CLOCK_MONOTONIC, CLOCK_THREAD_CPUTIME_ID, clock_gettime, timespec

from feedhandler._cext cimport *
from feedhandler.venue cimport Venue

cdef enum:
    EVENT_MAX = 8192
    CHANGE_MAX = 65536
    COLD_SIZE = 4 << 20  # bytes touched before each message of a cold pass: more than L2


cdef inline uint64_t now() noexcept nogil:
    cdef timespec time
    clock_gettime(CLOCK_MONOTONIC, &time)
    return <uint64_t>time.tv_sec * 1000000000 + time.tv_nsec


cdef inline uint64_t cpu_now() noexcept nogil:
    """CPU time of this thread: a neighbour that takes the CPU away in between does not count."""
    cdef timespec time
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time)
    return <uint64_t>time.tv_sec * 1000000000 + time.tv_nsec


cdef class NullVenue(Venue):
    """Decodes nothing: what is left of a frame is receiving it and counting it."""

    cdef int decode(self, const char *payload, size_t size, uint64_t ts_recv_ns, fh_batch *batch) noexcept nogil:
        batch.ignored = 1
        return 0


cdef class Frames:
    """Messages side by side in one buffer, each 64-byte aligned with 64 bytes behind it."""
    cdef char *buffer
    cdef size_t *at
    cdef size_t *size
    cdef readonly int count

    def __cinit__(self, list messages):
        self.count = len(messages)
        total = sum((len(m) + 191) // 64 * 64 for m in messages)
        self.buffer = <char *>calloc(1, total + 64)
        self.at = <size_t *>malloc(sizeof(size_t) * max(1, self.count))
        self.size = <size_t *>malloc(sizeof(size_t) * max(1, self.count))
        cdef size_t offset = 0
        for i, message in enumerate(messages):
            self.at[i] = offset
            self.size[i] = len(message)
            memcpy(self.buffer + offset, <const char *>message, len(message))
            offset += (len(message) + 191) // 64 * 64

    def __dealloc__(self):
        free(self.buffer)
        free(self.at)
        free(self.size)


def decode(Venue venue, Frames frames, int rounds):
    """(ns a message, events, failed) of decoding all frames `rounds` times, warm."""
    cdef fh_batch batch
    cdef int i, r, status
    cdef uint64_t begin, end, events = 0, failed = 0
    if fh_batch_init(&batch, EVENT_MAX, CHANGE_MAX) != FH_OK:
        raise MemoryError
    with nogil:
        begin = cpu_now()
        for r in range(rounds):
            for i in range(frames.count):
                fh_batch_clear(&batch)
                status = venue.decode(frames.buffer + frames.at[i], frames.size[i], 1, &batch)
                if status < 0:
                    failed += 1
                else:
                    events += status
        end = cpu_now()
    fh_batch_free(&batch)
    return (end - begin) / (rounds * frames.count), events // rounds, failed // rounds


def decode_cold(Venue venue, Frames frames):
    """ns of each message of one pass with the caches thrashed before it (timer included, about 20 ns)."""
    cdef fh_batch batch
    cdef char *cold = <char *>calloc(1, COLD_SIZE)
    cdef uint64_t begin
    cdef volatile long total = 0
    cdef int i, j
    samples = []
    if fh_batch_init(&batch, EVENT_MAX, CHANGE_MAX) != FH_OK or cold == NULL:
        raise MemoryError
    for i in range(frames.count):
        for j in range(0, COLD_SIZE, 64):
            cold[j] += 1
            total += cold[j]
        fh_batch_clear(&batch)
        begin = now()
        venue.decode(frames.buffer + frames.at[i], frames.size[i], 1, &batch)
        samples.append(now() - begin)
    fh_batch_free(&batch)
    free(cold)
    return samples


def decode_book(Venue venue, Frames frames, int rounds, int level_max=20000):
    """(ns a message, levels a message) of decoding depth frames and applying every level to its instrument's book."""
    cdef fh_batch batch
    cdef fh_book *books = <fh_book *>calloc(venue.row_max, sizeof(fh_book))
    cdef fh_book *book
    cdef int i, r, status
    cdef uint32_t e, c
    cdef uint64_t begin, end, levels = 0
    cdef fh_event *event
    cdef fh_change *change
    if books == NULL or fh_batch_init(&batch, EVENT_MAX, CHANGE_MAX) != FH_OK:
        raise MemoryError
    with nogil:
        for r in range(-1, rounds):  # the first round fills the books, untimed
            if r == 0:
                begin, levels = cpu_now(), 0
            for i in range(frames.count):
                fh_batch_clear(&batch)
                status = venue.decode(frames.buffer + frames.at[i], frames.size[i], 1, &batch)
                for e in range(batch.event_count):
                    event = &batch.events[e]
                    if event.kind != FH_LEVEL:
                        continue
                    book = &books[event.instrument]
                    if book.bid.max == 0 and fh_book_init(book, level_max) != FH_OK:
                        continue
                    for c in range(event.body.book.change_count):
                        change = &batch.changes[event.body.book.change_begin + c]
                        fh_book_set(book, change.side, change.price, change.size)
                    levels += event.body.book.change_count
        end = cpu_now()
    fh_batch_free(&batch)
    for i in range(<int>venue.row_max):
        if books[i].bid.max:
            fh_book_free(&books[i])
    free(books)
    return (end - begin) / (rounds * frames.count), levels / (rounds * frames.count)


def operations(Venue venue, list messages):
    """Every level change of the messages as (instrument, side, price, size), in order; a snapshot is ("clear", instrument) first."""
    cdef fh_batch batch
    cdef fh_event *event
    cdef fh_change *change
    cdef uint32_t e, c
    found = []
    if fh_batch_init(&batch, EVENT_MAX, CHANGE_MAX) != FH_OK:
        raise MemoryError
    for message in messages:
        fh_batch_clear(&batch)
        padded = message + bytes(64)
        venue.decode(<const char *>padded, len(message), 1, &batch)
        for e in range(batch.event_count):
            event = &batch.events[e]
            if event.kind != FH_LEVEL:
                continue
            if event.flags & FH_RESET:
                found.append(("clear", event.instrument))
            for c in range(event.body.book.change_count):
                change = &batch.changes[event.body.book.change_begin + c]
                found.append((event.instrument, change.side, change.price, change.size))
    fh_batch_free(&batch)
    return found


def book_pass(list operations, int level_max, int rounds):
    """(ns a level, digest) of applying operations of one instrument to an empty book, reading both best prices after each.

    digest: the sum of the best bid and ask prices after every change of the last round."""
    cdef int count = len(operations), i, r
    cdef uint8_t *side = <uint8_t *>malloc(max(1, count))
    cdef int64_t *price = <int64_t *>malloc(sizeof(int64_t) * max(1, count))
    cdef int64_t *size = <int64_t *>malloc(sizeof(int64_t) * max(1, count))
    cdef fh_book book
    cdef const fh_level *best
    cdef uint64_t begin, total = 0
    cdef int64_t digest = 0
    if fh_book_init(&book, level_max) != FH_OK:
        raise MemoryError
    for i, (_, s, p, z) in enumerate(operations):
        side[i], price[i], size[i] = s, p, z
    with nogil:
        for r in range(rounds):
            fh_book_clear(&book)
            digest = 0
            begin = cpu_now()
            for i in range(count):
                fh_book_set(&book, side[i], price[i], size[i])
                best = fh_book_best(&book.bid)
                if best != NULL:
                    digest += best.price
                best = fh_book_best(&book.ask)
                if best != NULL:
                    digest += best.price
            total += cpu_now() - begin
    fh_book_free(&book)
    free(side)
    free(price)
    free(size)
    return total / (rounds * count), digest
