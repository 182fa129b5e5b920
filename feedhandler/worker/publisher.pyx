# cython: language_level=3
"""The publisher: events of decoded frames into books, state rows and the ring of one worker.

    frame → decode → (arbitrate | chain → book → checksum) → records → rows → head

Who writes:   the worker's loop thread alone. Who reads: nobody here; readers map the files.
What blocks:  nothing. What is lost: what a counter says; a book that may be wrong is not published, a GAP is.
After a crash: the ring is resumed with EPOCH, and this worker's rows are STALE until rebuilt.

frame() and everything it calls allocate nothing and touch no Python object. A book message is applied in
private first, then checked, then published: a failed checksum publishes GAP and none of its levels.
A snapshot is published as the book it led to (RESET|SNAPSHOT, bids before asks, best first), so repeated or
truncated levels of the venue's message do not reach a reader. A window book (depth20, books5) is published
whole for every message.
"""
import errno
import os

cimport cython
from libc.errno cimport errno as errno_now
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memset
from posix.time cimport CLOCK_MONOTONIC, CLOCK_REALTIME, clock_gettime, timespec
from feedhandler._cext cimport *
from feedhandler.venue cimport Venue
from feedhandler.venue import CHANNELS

cdef extern from *:
    """
    #include <stdint.h>
    #define FH_POOL_END UINT32_MAX /* behind the last of a list in a pool */
    """
    uint32_t NONE "FH_POOL_END"

cdef enum:
    EVENT_COUNT_MAX = 16384         # events of one frame: the largest all-market array has about 3,000
    CHANGE_COUNT_MAX = 131072       # levels of one frame: a 16 MiB frame of 130-byte rows
    OUT_COUNT_MAX = 3 * 131072      # each change may push one level out by size and one by depth
    PENDING_COUNT_MAX = 16384       # held-back messages of all books: 500 books for 3 s at 10 a second
    RUN_COUNT_MAX = 32768           # their changes: 983,040 levels, 24 MB, touched only when used
    DIGITS_TRIES_MAX = 4096         # raises in one frame: two for every instrument of an all-market array
    OLD_RUN_MAX = 1024              # older-than-window events in a row before we believe that ids started again
    GAP_WAIT_MAX = 64               # messages of the line ahead dropped while the other line catches up
    SEEN_BITS = 64                  # window of trade ids remembered for late arrivals
    HEADROOM_POWER = 1              # a rescaled value must fit with one more decimal digit
    SAMPLE_SIZE = 80                # bytes of a refused frame kept for `errors`
    CLOCK_PERIOD_NS = 1000000000    # a CLOCK record once a second
    DECODE_SAMPLE_MASK = 7          # every eighth frame is timed: a clock read costs as much as a quote

STATE_NAMES = ("NONE", "PENDING", "SYNCING", "LIVE", "GAP")
SEEDS = {"": SEED_IN_BAND, "in_band": SEED_IN_BAND, "rest": SEED_REST, "window": SEED_WINDOW}


cdef inline uint64_t clock_now(int clock) noexcept nogil:
    cdef timespec now
    clock_gettime(clock, &now)
    return <uint64_t>now.tv_sec * 1000000000 + <uint64_t>now.tv_nsec


cdef inline uint64_t elapsed(uint64_t begin, uint64_t end) noexcept nogil:
    """end - begin, or 0: a venue's clock may be ahead of ours."""
    return end - begin if end > begin else 0


cdef inline bint fits(int64_t value, int power) noexcept nogil:
    """Whether value * 10^power fits an int64 with a digit to spare."""
    cdef int64_t bound = 9223372036854775807
    cdef int i
    if value == FH_UNDEFINED:
        return True
    for i in range(power + (HEADROOM_POWER if power else 0)):
        bound //= 10
    return -bound <= value <= bound


cdef inline void scale(int64_t *value, int power) noexcept nogil:
    cdef int i
    if value[0] != FH_UNDEFINED:
        for i in range(power):
            value[0] *= 10


cdef inline const char *error_name(int error) noexcept nogil:
    if error == FH_ERROR_MALFORMED: return b"malformed"
    if error == FH_ERROR_UNKNOWN: return b"unknown message"
    if error == FH_ERROR_SYMBOL: return b"unknown symbol"
    if error == FH_ERROR_FULL: return b"more events than a frame may hold"
    if error == FH_ERROR_DIGITS: return b"too many digits"
    if error == FH_ERROR_MISSING: return b"a needed field is missing"
    if error == FH_ERROR_RANGE: return b"number out of range"
    if error == FH_ERROR_DEPTH: return b"nested too deep"
    return b"error"


cdef uint8_t channel_index(channel) except 255:
    """fh_channel of a channel's name or index."""
    if isinstance(channel, str):
        if channel not in CHANNELS:
            raise ValueError(f"channel {channel!r} is not known; use one of {', '.join(CHANNELS)}")
        return CHANNELS.index(channel)
    if not 0 <= channel < len(CHANNELS):
        raise ValueError(f"channel index {channel} is not in 0..{len(CHANNELS) - 1}")
    return channel


@cython.final
cdef class Publisher:
    """Books, rows and ring of one worker. dir_fd is the instance directory; `state` and `readers` are used if there."""

    def __cinit__(self, int dir_fd, uint32_t worker, uint64_t slot_count, uint32_t row_max, uint32_t level_max,
                  uint64_t generation=0, bint resume=False):
        cdef uint32_t i
        self.writer.fd = self.state.fd = self.readers.fd = -1
        self.row_max, self.level_max, self.worker = row_max, level_max, worker
        self.inherited, self.interrupted = {}, set()
        self.slots = <fh_slot *>calloc(row_max, sizeof(fh_slot))
        self.dirty = <uint32_t *>malloc(row_max * sizeof(uint32_t))
        self.noticed = <uint32_t *>malloc(row_max * sizeof(uint32_t))
        self.pending = <fh_pending *>malloc(PENDING_COUNT_MAX * sizeof(fh_pending))
        self.runs = <fh_run *>malloc(RUN_COUNT_MAX * sizeof(fh_run))
        self.out_bid = <fh_change *>malloc(OUT_COUNT_MAX * sizeof(fh_change))
        self.out_ask = <fh_change *>malloc(OUT_COUNT_MAX * sizeof(fh_change))
        if (not self.slots or not self.dirty or not self.noticed or not self.pending or not self.runs
                or not self.out_bid or not self.out_ask
                or fh_batch_init(&self.batch, EVENT_COUNT_MAX, CHANGE_COUNT_MAX) < 0):
            raise MemoryError(f"no memory for {row_max} instruments and their held-back changes")
        for i in range(PENDING_COUNT_MAX):
            self.pending[i].next = i + 1 if i + 1 < PENDING_COUNT_MAX else NONE
        self.run_free = NONE    # runs are taken in order first, so that memory never needed is never touched
        self.open(dir_fd, slot_count, generation, resume)
        self.part_max = self.writer.ring.slot_count // 4
        self.flushed = self.writer.position

    def open(self, int dir_fd, uint64_t slot_count, uint64_t generation, bint resume):
        """Map the files: ring and counters are ours, `state` and `readers` the supervisor's."""
        cdef int answer
        if resume:
            answer = fh_ring_resume(&self.writer, dir_fd, self.worker)
        else:
            answer = fh_ring_create(&self.writer, dir_fd, self.worker, slot_count, generation)
        if answer == FH_ERROR_RANGE:
            raise ValueError(f"a ring of {slot_count} slots is not possible: use a power of two from 1,024 to 67,108,864")
        if answer < 0:
            raise failed(answer, f"worker-{self.worker}.ring")
        self.counters = fh_counters_create(dir_fd, self.worker, generation)
        if self.counters == NULL:
            raise failed(FH_ERROR_SYSTEM, f"worker-{self.worker}.counters")
        self.table(&self.state, dir_fd, b"state", FH_MAGIC_STATE, sizeof(fh_state_row))
        if fh_readers_open(&self.readers, dir_fd) == FH_OK:     # without it readers that wait look again by themselves
            self.writer.waiting = &(<fh_readers *>self.readers.file).waiting[self.worker]
        if resume:
            self.counters.counter[FH_COUNTER_resumes] += 1
            self.rows_stale()

    cdef bint table(self, fh_table *table, int dir_fd, const char *name, uint64_t magic, uint32_t row_size) except -1:
        """Map a file of the supervisor; False where an instance has none."""
        cdef int answer = fh_table_open(table, dir_fd, name, magic, row_size)
        if answer < 0:
            table.file, table.fd = NULL, -1
            if answer == FH_ERROR_SYSTEM and errno_now == errno.ENOENT:
                return False
            raise failed(answer, name.decode())
        return True

    def rows_stale(self):
        """After a crash: mark our rows, and take over the exponents that the ring's readers know.

        A row holds those of the last flush; a change behind it lies in the ring, at most part_max records back."""
        cdef uint32_t i
        cdef uint64_t position = self.writer.position
        cdef uint64_t behind = min(position, self.writer.ring.slot_count // 4 + FH_CLAIM_BLOCK)
        cdef fh_record *slot
        cdef fh_state_row *row
        cdef fh_state_l1 l1
        if self.state.file == NULL:
            return
        changed = {}
        for position in range(position - behind, position):
            slot = &self.writer.slots[position & self.writer.mask]
            if slot.kind == FH_STATUS and slot.body.status.code == FH_INSTRUMENT_CHANGED and slot.commit == position + 1:
                changed[slot.instrument] = <int8_t>slot.body.status.a, <int8_t>slot.body.status.b
        for i in range(min(self.state.row_max, self.row_max)):
            row = &(<fh_state_row *>self.state.rows)[i]
            l1 = row.l1[row.latch_l1 & 1]
            if row.owner == self.worker and l1.position:
                l1.flags |= FH_STALE
                l1.status = FH_GAP if l1.status else 0
                self.interrupted.add(i)
                self.inherited[i] = changed.get(i, (l1.price_exponent, l1.size_exponent))
                if self.inherited[i] != (l1.price_exponent, l1.size_exponent):
                    l1.price_exponent, l1.size_exponent = self.inherited[i]
                    undefine(&l1)
                fh_state_put_l1(row, &l1)

    def close(self):
        """Leave the ring as it is, CLOSED. Called again, does nothing."""
        if self.writer.ring != NULL:
            fh_ring_close(&self.writer)
            self.writer.ring = NULL
        if self.counters != NULL:
            fh_counters_close(self.counters)
            self.counters = NULL
        if self.state.file != NULL:
            fh_table_close(&self.state)
            self.state.file = NULL
        if self.readers.file != NULL:
            fh_table_close(&self.readers)
            self.readers.file = NULL

    def __dealloc__(self):
        cdef uint32_t i
        self.close()
        if self.slots:
            for i in range(self.row_max):
                if self.slots[i].book.bid.max:
                    fh_book_free(&self.slots[i].book)
        free(self.slots)
        free(self.dirty)
        free(self.noticed)
        free(self.pending)
        free(self.runs)
        free(self.out_bid)
        free(self.out_ask)
        free(self.padded)
        fh_batch_free(&self.batch)

    # -- one frame -------------------------------------------------------------------------------------------

    cdef int frame(self, Venue venue, uint32_t session, const char *payload, size_t size,
                   uint64_t ts_recv_ns) noexcept nogil:
        """Decode and publish one text frame. Returns its events, or a negative fh_error, counted and noted.

        self.control is 1 if the frame must also go to Venue.control(). Records are committed; flush() moves head."""
        cdef fh_session_row *row = &self.counters.session[session % <uint32_t>FH_SESSION_MAX]
        cdef int decoded
        cdef uint32_t i
        self.frame_count += 1
        self.counters.counter[FH_COUNTER_frames] += 1
        self.counters.counter[FH_COUNTER_frame_bytes] += size
        row.frames += 1
        row.bytes += size
        row.frame_ns_last = ts_recv_ns
        if self.recv_first_ns == 0:
            self.recv_first_ns = ts_recv_ns
        self.control = 0
        decoded = self.decode(venue, payload, size, ts_recv_ns, session)
        if decoded < 0:
            self.refuse(decoded, payload, size, ts_recv_ns, session)
            if decoded != FH_ERROR_UNKNOWN and decoded != FH_ERROR_SYMBOL:
                self.distrust(ts_recv_ns, session)
            return decoded
        if (self.frame_count & DECODE_SAMPLE_MASK) == 0:
            fh_histogram_add(&self.counters.stage[<int>FH_STAGE_DECODE],
                             elapsed(ts_recv_ns, clock_now(CLOCK_MONOTONIC) + self.clock_offset_ns))
        self.control = self.batch.control
        self.counters.counter[FH_COUNTER_frames_control] += self.batch.control
        self.counters.counter[FH_COUNTER_events_ignored] += self.batch.ignored
        self.counters.counter[FH_COUNTER_frames_unlisted] += self.batch.unlisted
        self.counters.counter[FH_COUNTER_events] += self.batch.event_count
        for i in range(self.batch.event_count):
            self.event(venue, &self.batch.events[i], session, ts_recv_ns)
        if self.writer.position - self.flushed > self.part_max:
            self.put_rows()
            fh_ring_flush(&self.writer)
        return decoded

    cdef int decode(self, Venue venue, const char *payload, size_t size, uint64_t ts_recv_ns,
                    uint16_t session) noexcept nogil:
        """Decode into the batch, lowering exponents as the frame's digits want; past that, rounded and flagged."""
        cdef int decoded, tries = 0
        fh_batch_clear(&self.batch)
        self.batch.accept_inexact = 0
        decoded = venue.decode(payload, size, ts_recv_ns, &self.batch)
        while decoded == FH_ERROR_DIGITS and not self.batch.accept_inexact:
            tries += 1
            if tries > DIGITS_TRIES_MAX or not self.lower(venue, ts_recv_ns, session):
                self.batch.accept_inexact = 1
            fh_batch_clear(&self.batch)
            decoded = venue.decode(payload, size, ts_recv_ns, &self.batch)
        return decoded

    cdef void flush(self, uint64_t now_mono_ns) noexcept nogil:
        """End of one receive batch: rows, then head, then sleeping readers. Also called while nothing arrives."""
        cdef uint64_t records = self.writer.position - self.flushed
        if now_mono_ns - self.clock_ns >= CLOCK_PERIOD_NS:
            self.put_clock(now_mono_ns)
        self.put_rows()
        fh_ring_flush(&self.writer)
        fh_ring_heartbeat(&self.writer, now_mono_ns)
        self.counters.heartbeat_ns = now_mono_ns
        if records == 0 and self.recv_first_ns == 0:
            return
        fh_ring_wake(&self.writer, now_mono_ns)
        self.counters.counter[FH_COUNTER_wakes] = self.writer.wake_count
        self.counters.counter[FH_COUNTER_batches] += 1
        if self.recv_first_ns:
            fh_histogram_add(&self.counters.stage[<int>FH_STAGE_PUBLISH],
                             elapsed(self.recv_first_ns, now_mono_ns + self.clock_offset_ns))
            self.recv_first_ns = 0

    cdef void refuse(self, int error, const char *payload, size_t size, uint64_t ts_recv_ns,
                     uint16_t session) noexcept nogil:
        """Count a frame or snapshot that could not be decoded, and keep a sample of it for `errors`."""
        cdef char text[SAMPLE_SIZE + 48]
        cdef size_t at = 0, i
        cdef const char *name = error_name(error)
        if error == FH_ERROR_UNKNOWN:
            self.counters.counter[FH_COUNTER_frames_unknown] += 1
        elif error == FH_ERROR_SYMBOL:
            self.counters.counter[FH_COUNTER_frames_unlisted] += 1
        elif error == FH_ERROR_FULL:
            self.counters.counter[FH_COUNTER_frames_oversize] += 1
        else:
            self.counters.counter[FH_COUNTER_frames_malformed] += 1
        while name[at]:
            text[at] = name[at]
            at += 1
        text[at], text[at + 1] = b":", b" "
        at += 2
        for i in range(min(size, <size_t>SAMPLE_SIZE)):
            text[at + i] = payload[i] if 32 <= <uint8_t>payload[i] < 127 else b"?"
        fh_error_add(self.counters, ts_recv_ns, <uint32_t>(-error), session, text, at + min(size, <size_t>SAMPLE_SIZE))

    cdef void distrust(self, uint64_t ts_recv_ns, uint16_t session) noexcept nogil:
        """A frame was lost. A book without sequence and checksum cannot notice, so it is broken here and now."""
        cdef uint32_t i
        cdef fh_slot *slot
        for i in range(self.row_max):
            slot = &self.slots[i]
            if slot.book_state == BOOK_LIVE and slot.book_session == session and not slot.chained and slot.seed != SEED_WINDOW:
                self.broken(slot, 0, 0, session, ts_recv_ns, True)

    # -- digits ----------------------------------------------------------------------------------------------

    cdef bint lower(self, Venue venue, uint64_t ts_recv_ns, uint16_t session) noexcept nogil:
        """Give batch.wanted_instrument the digits it wants. False if a value we hold would not fit then."""
        cdef fh_instrument *row
        cdef fh_slot *slot = self.known(venue, self.batch.wanted_instrument)
        cdef int price_digits, size_digits, price_power, size_power
        cdef uint64_t before
        if slot == NULL:
            return False
        row = &venue.rows[slot.instrument]
        price_digits = max(<int>self.batch.wanted_price_digits, -<int>row.price_exponent)
        size_digits = max(<int>self.batch.wanted_size_digits, -<int>row.size_exponent)
        price_power = price_digits + row.price_exponent
        size_power = size_digits + row.size_exponent
        if price_digits > FH_DIGITS_MAX or size_digits > FH_DIGITS_MAX or (price_power == 0 and size_power == 0):
            return False
        if not self.rescale(slot, price_power, size_power):
            return False
        before = <uint8_t>row.price_exponent | <uint64_t><uint8_t>row.size_exponent << 8
        row.price_exponent = slot.l1.price_exponent = <int8_t>(-price_digits)
        row.size_exponent = slot.l1.size_exponent = <int8_t>(-size_digits)
        self.counters.counter[FH_COUNTER_exponent_raised] += 1
        self.put_status(slot.instrument, FH_INSTRUMENT_CHANGED, 0, <uint64_t><int64_t>row.price_exponent,
                        <uint64_t><int64_t>row.size_exponent, before, session, ts_recv_ns)
        if slot.book_state == BOOK_LIVE:
            if self.put_book(slot, 0, session, ts_recv_ns):
                self.put_status(slot.instrument, FH_LIVE, FH_CHANNEL_BOOK, 0, 0, 0, session, ts_recv_ns)
            self.put_touch(slot, True, session, ts_recv_ns)
        self.notice(slot, 0, NOTICE_EXPONENT)
        self.touch_row(slot)
        return True

    cdef bint rescale(self, fh_slot *slot, int price_power, int size_power) noexcept nogil:
        """Bring every value held for an instrument to new exponents; all or nothing, but for held-back changes."""
        cdef fh_state_l1 *l1 = &slot.l1
        cdef int64_t *prices[8]
        cdef int64_t *sizes[6]
        cdef int i
        prices[0], prices[1], prices[2], prices[3] = &l1.bid_price, &l1.ask_price, &l1.quote_bid_price, &l1.quote_ask_price
        prices[4], prices[5], prices[6], prices[7] = &l1.trade_price, &l1.mark_price, &l1.index_price, NULL
        sizes[0], sizes[1], sizes[2], sizes[3] = &l1.bid_size, &l1.ask_size, &l1.quote_bid_size, &l1.quote_ask_size
        sizes[4], sizes[5] = &l1.trade_size, &l1.open_interest
        for i in range(7):
            if not fits(prices[i][0], price_power):
                return False
        for i in range(6):
            if not fits(sizes[i][0], size_power):
                return False
        if slot.book.bid.max and not fh_book_rescale(&slot.book, price_power, size_power):
            return False
        for i in range(7):
            scale(prices[i], price_power)
        for i in range(6):
            scale(sizes[i], size_power)
        if slot.pending_count and not pending_rescale(self, slot, price_power, size_power):
            self.pending_drop(slot)
            slot.book_state = BOOK_WAITING
            self.notice(slot, FH_CHANNEL_BOOK, NOTICE_PENDING_FULL)
        slot.book_dirty = 1
        return True

    # -- one event -------------------------------------------------------------------------------------------

    cdef void event(self, Venue venue, const fh_event *event, uint16_t session, uint64_t ts_recv_ns) noexcept nogil:
        """One venue event to its slot. Its channel is bounded by the decoder's contract; so is its instrument."""
        cdef fh_slot *slot = self.known(venue, event.instrument)
        cdef fh_stream *stream
        if slot == NULL or event.channel >= CHANNEL_MAX:
            self.counters.counter[FH_COUNTER_frames_unlisted] += 1
            return
        stream = &slot.stream[event.channel]
        if stream.removed:
            self.counters.counter[FH_COUNTER_events_ignored] += 1
            return
        if stream.session_count == 0 or stream.session[0] != session:
            line_seen(stream, session)
        stream.last_ns = ts_recv_ns
        stream.messages += 1
        if stream.first_pending:
            stream.first_pending = 0
            self.notice(slot, event.channel, NOTICE_FIRST_DATA)
        if event.ts_event_ns:
            fh_histogram_add(&self.counters.stage[<int>FH_STAGE_VENUE], elapsed(event.ts_event_ns, ts_recv_ns))
        if event.flags & (FH_INEXACT | FH_OVERFLOW | FH_TS_SUSPECT):
            count_flags(self.counters, event.flags)
        if event.kind == FH_LEVEL:
            self.book_message(venue, slot, event, session, ts_recv_ns)
        elif event.sequence == 0 or self.arrived(stream, event):
            self.plain(slot, stream, event, session, ts_recv_ns)
        else:
            self.counters.counter[FH_COUNTER_duplicates] += 1

    cdef bint arrived(self, fh_stream *stream, const fh_event *event) noexcept nogil:
        """Sequence arbitration: whether this is the first arrival of the event's sequence on any line.

        Trades may come late within a window and are never lost; of other kinds an older one is out of date."""
        cdef uint64_t behind
        if event.sequence > stream.sequence:
            behind = event.sequence - stream.sequence
            stream.seen = (stream.seen << behind | 1) if behind < SEEN_BITS else 1
            stream.sequence = event.sequence
            stream.frame = self.frame_count
            stream.old_run = 0
            return True
        behind = stream.sequence - event.sequence
        if event.kind != FH_TRADE and event.kind != FH_LIQUIDATION:
            if behind == 0 and stream.frame == self.frame_count:
                return True
        elif behind < SEEN_BITS:
            if not stream.seen >> behind & 1:
                stream.seen |= <uint64_t>1 << behind
                return True
        if behind < SEEN_BITS:
            return False
        stream.old_run += 1
        if stream.old_run < OLD_RUN_MAX:
            return False
        stream.sequence, stream.seen, stream.frame, stream.old_run = event.sequence, 1, self.frame_count, 0
        stream.gap_before = 1   # the venue's ids started again, and what came until we believed it is lost
        stream.gaps += 1
        return True

    cdef void plain(self, fh_slot *slot, fh_stream *stream, const fh_event *event, uint16_t session,
                    uint64_t ts_recv_ns) noexcept nogil:
        """An event that is its own record: copy it behind a header, with continuations, and remember it in the row."""
        cdef uint8_t flags = event.flags & ~FH_LAST
        cdef uint32_t i
        cdef fh_record *record
        if stream.gap_before:
            flags |= FH_GAP_BEFORE
            stream.gap_before = 0
        for i in range(event.slot_count):
            record = fh_ring_slot(&self.writer)
            record.ts_recv_ns = ts_recv_ns
            record.ts_event_ns = event.ts_event_ns
            record.instrument = slot.instrument
            record.kind = event.kind if i == 0 else <uint8_t>FH_CONTINUATION
            record.flags = flags | FH_LAST if i + 1 == event.slot_count else flags
            record.session = session
            memcpy(record.body.word, &event.body.word[4 * i], 32)
            fh_ring_commit(&self.writer)
        remember(slot, event)
        slot.l1.ts_recv_ns = ts_recv_ns
        slot.l1.ts_event_ns = event.ts_event_ns
        self.touch_row(slot)

    # -- books -----------------------------------------------------------------------------------------------

    cdef void book_message(self, Venue venue, fh_slot *slot, const fh_event *event, uint16_t session,
                           uint64_t ts_recv_ns) noexcept nogil:
        """One book message: a snapshot seeds, a change follows the chain, and without a seed waits or is dropped."""
        self.counters.counter[FH_COUNTER_book_messages] += 1
        self.counters.counter[FH_COUNTER_book_levels] += event.body.book.change_count
        if slot.book_state == BOOK_NONE:
            self.counters.counter[FH_COUNTER_events_ignored] += 1
        elif event.flags & FH_SNAPSHOT or event.body.book.window:
            self.book_whole(venue, slot, event, session, ts_recv_ns)
        elif slot.book_state == BOOK_LIVE:
            self.book_delta(venue, slot, event, session, ts_recv_ns)
        elif slot.book_state == BOOK_SYNCING:
            if not self.hold_back(slot, event, session, ts_recv_ns):
                self.pending_drop(slot)
                slot.book_state = BOOK_GAP if slot.l1.status == FH_GAP else BOOK_WAITING
                self.notice(slot, FH_CHANNEL_BOOK, NOTICE_PENDING_FULL)
        else:
            slot.stats.dropped += 1
            self.counters.counter[FH_COUNTER_book_pending_dropped] += 1

    cdef void book_whole(self, Venue venue, fh_slot *slot, const fh_event *event, uint16_t session,
                         uint64_t ts_recv_ns) noexcept nogil:
        """A full book in band. On another line of a live book it counts only if it is ahead of ours."""
        cdef const fh_book_event *book = &event.body.book
        cdef bint numbered = book.last != 0
        cdef bint behind = book.last <= slot.chain.last if numbered else book.window
        if slot.book_state == BOOK_LIVE and session != slot.book_session and behind:
            self.counters.counter[FH_COUNTER_duplicates] += 1
            return
        self.pending_drop(slot)
        fh_book_clear(&slot.book)
        venue.chain(&slot.chain, event)
        if book.window:
            slot.chain.last, slot.chain.state = book.last, FH_CHAIN_LIVE
        slot.chained = numbered or book.has_checksum
        slot.gap_session = 0
        slot.gap_waited = 0
        self.apply(slot, event)
        slot.book_session = session
        slot.stats.snapshots += 1
        self.counters.counter[FH_COUNTER_book_snapshots] += 1
        if self.check(venue, slot, event) == 0:
            self.broken(slot, book.checksum, 0, session, ts_recv_ns, True)
            return
        slot.book_ts_event_ns = event.ts_event_ns
        self.live(slot, session, ts_recv_ns, self.put_book(slot, event.flags, session, ts_recv_ns))

    cdef void book_delta(self, Venue venue, fh_slot *slot, const fh_event *event, uint16_t session,
                         uint64_t ts_recv_ns) noexcept nogil:
        """A change to a live book: chained, applied in private, checked, and only then published."""
        cdef const fh_book_event *book = &event.body.book
        cdef uint64_t expected = slot.chain.last
        cdef int verdict
        if book.last == 0 and session != slot.book_session:
            self.counters.counter[FH_COUNTER_duplicates] += 1   # without numbers one line alone feeds a book
            return
        verdict = venue.chain(&slot.chain, event)
        if verdict == FH_VERDICT_OLD:
            slot.stats.stale += 1
            self.counters.counter[FH_COUNTER_book_stale] += 1
            return
        if verdict != FH_VERDICT_APPLY:
            if not self.line_ahead(slot, event, session):
                self.broken(slot, expected, book.prev if book.has_prev else book.first, session, ts_recv_ns, True)
            return
        slot.gap_waited = 0
        self.apply(slot, event)
        slot.stats.updates += 1
        if self.check(venue, slot, event) == 0:
            self.broken(slot, book.checksum, 0, session, ts_recv_ns, True)
            return
        slot.book_ts_event_ns = event.ts_event_ns
        self.put_delta(slot, event, session, ts_recv_ns)
        self.put_touch(slot, False, session, ts_recv_ns)

    cdef bint line_ahead(self, fh_slot *slot, const fh_event *event, uint16_t session) noexcept nogil:
        """Whether a missing message may still come on the book's other line: this one is dropped, that one brings both.

        Not for ever: the second line that misses it, or GAP_WAIT_MAX messages, make it a gap."""
        if slot.stream[<int>FH_CHANNEL_BOOK].session_count < 2 or event.body.book.last == 0:
            return False
        if slot.gap_waited == 0:
            slot.gap_session = session
        slot.gap_waited += 1
        if session != slot.gap_session or slot.gap_waited > GAP_WAIT_MAX:
            return False
        slot.stats.dropped += 1
        self.counters.counter[FH_COUNTER_book_pending_dropped] += 1
        return True

    cdef void apply(self, fh_slot *slot, const fh_event *event) noexcept nogil:
        """Apply a message to the book, in order, collecting what changed in out_bid and out_ask."""
        cdef const fh_change *changes = &self.batch.changes[event.body.book.change_begin]
        cdef uint64_t refused = slot.book.levels_refused, absent = slot.book.deletes_absent
        cdef uint32_t i
        self.out_bid_count = self.out_ask_count = 0
        for i in range(event.body.book.change_count):
            self.apply_side(slot, &changes[i])
        if slot.depth:
            self.truncate(slot)
        self.counters.counter[FH_COUNTER_book_levels_refused] += slot.book.levels_refused - refused
        self.counters.counter[FH_COUNTER_book_deletes_absent] += slot.book.deletes_absent - absent
        slot.l1.sequence = slot.chain.last

    cdef void apply_side(self, fh_slot *slot, const fh_change *change) noexcept nogil:
        """One level. What a full side pushes out is collected as deleted, so that a reader's book equals ours."""
        cdef fh_side_array *side = &slot.book.bid if change.side == FH_BID else &slot.book.ask
        cdef uint64_t refused = slot.book.levels_refused
        cdef bint full = side.count == side.max
        cdef int64_t worst = side.level[0].price if full else 0
        cdef int64_t size = change.size
        cdef int depth
        if change.flags:
            count_flags(self.counters, change.flags)
            if change.price == FH_UNDEFINED:
                return
            if size == FH_UNDEFINED:
                size = 0    # a size we cannot hold: no level, and its record says FH_OVERFLOW
        depth = fh_book_set(&slot.book, change.side, change.price, size)
        if depth >= 0 or change.flags or (change.order_count and size and slot.book.levels_refused == refused):
            collect(self, change.side, change)
        if full and side.count == side.max and side.level[0].price != worst:
            collect_deleted(self, change.side, worst)

    cdef void truncate(self, fh_slot *slot) noexcept nogil:
        """Keep the depth the venue keeps for us; what falls out gets no deletion from the venue, so it gets one here."""
        cdef uint32_t i
        if slot.book.bid.count <= slot.depth and slot.book.ask.count <= slot.depth:
            return
        if slot.book.bid.count > slot.depth:
            for i in range(slot.book.bid.count - slot.depth):
                collect_deleted(self, FH_BID, slot.book.bid.level[i].price)
        if slot.book.ask.count > slot.depth:
            for i in range(slot.book.ask.count - slot.depth):
                collect_deleted(self, FH_ASK, slot.book.ask.level[i].price)
        fh_book_truncate(&slot.book, slot.depth)

    cdef int check(self, Venue venue, fh_slot *slot, const fh_event *event) noexcept nogil:
        """The venue's checksum of the book as it is now: 1 right, 0 wrong, -1 none sent."""
        cdef int answer = venue.checksum(&slot.book, event, &venue.rows[slot.instrument])
        if answer == 1:
            slot.stats.checksum_ok += 1
            self.counters.counter[FH_COUNTER_book_checksum_ok] += 1
        elif answer == 0:
            slot.stats.checksum_bad += 1
            self.counters.counter[FH_COUNTER_book_checksum_bad] += 1
        return answer

    cdef void broken(self, fh_slot *slot, uint64_t a, uint64_t b, uint16_t session, uint64_t ts_recv_ns,
                     bint notice) noexcept nogil:
        """The book is not valid from here on. GAP is published once, however often it breaks before it lives again."""
        self.pending_drop(slot)
        fh_book_clear(&slot.book)
        memset(&slot.chain, 0, sizeof(fh_chain))
        slot.book_state = BOOK_GAP
        slot.gap_a, slot.gap_b = a, b
        slot.gap_waited = 0
        if notice:
            self.notice(slot, FH_CHANNEL_BOOK, NOTICE_GAP)
        if slot.l1.status == FH_GAP:
            return
        slot.stats.gaps += 1
        slot.stream[<int>FH_CHANNEL_BOOK].gaps += 1
        self.counters.counter[FH_COUNTER_book_gaps] += 1
        self.counters.session[session % <uint32_t>FH_SESSION_MAX].gaps += 1
        self.put_status(slot.instrument, FH_GAP, FH_CHANNEL_BOOK, a, b, 0, session, ts_recv_ns)
        slot.l1.status = FH_GAP
        slot.l1.flags |= FH_STALE
        slot.l1.bid_price = slot.l1.ask_price = FH_UNDEFINED
        slot.l1.bid_size = slot.l1.ask_size = 0
        slot.book_dirty = 1
        self.touch_row(slot)

    cdef void live(self, fh_slot *slot, uint16_t session, uint64_t ts_recv_ns, bint parts) noexcept nogil:
        """A snapshot was published: its touch, and LIVE where the stream was not, or readers saw it in parts."""
        cdef bint was_live = slot.book_state == BOOK_LIVE
        slot.book_state = BOOK_LIVE
        slot.l1.status = FH_LIVE
        slot.l1.flags &= ~FH_STALE
        self.put_touch(slot, True, session, ts_recv_ns)
        if parts or not was_live:
            self.put_status(slot.instrument, FH_LIVE, FH_CHANNEL_BOOK, 0, 0, 0, session, ts_recv_ns)
        if not was_live:
            self.notice(slot, FH_CHANNEL_BOOK, NOTICE_LIVE)

    # -- records of a book -----------------------------------------------------------------------------------

    cdef void put_delta(self, fh_slot *slot, const fh_event *event, uint16_t session, uint64_t ts_recv_ns) noexcept nogil:
        """What one message changed, bids before asks, the last with LAST. Nothing changed: nothing is written."""
        cdef uint32_t count = self.out_bid_count + self.out_ask_count, i
        cdef uint8_t flags = event.flags & (FH_TS_SUSPECT | FH_GAP_BEFORE)
        cdef const fh_change *change
        cdef bint parts = count > self.part_max
        for i in range(count):
            change = &self.out_bid[i] if i < self.out_bid_count else &self.out_ask[i - self.out_bid_count]
            if i + 1 == count:
                self.put_level(slot, change, flags | FH_LAST, session, ts_recv_ns)
            elif parts and (i + 1) % self.part_max == 0:
                self.put_level(slot, change, flags | FH_LAST, session, ts_recv_ns)
                fh_ring_flush(&self.writer)
            else:
                self.put_level(slot, change, flags, session, ts_recv_ns)
        if parts:
            self.put_status(slot.instrument, FH_LIVE, FH_CHANNEL_BOOK, 0, 0, 0, session, ts_recv_ns)
        if count:
            slot.book_dirty = 1
            self.touch_row(slot)

    cdef bint put_book(self, fh_slot *slot, uint8_t flags, uint16_t session, uint64_t ts_recv_ns) noexcept nogil:
        """The whole book as RESET|SNAPSHOT, in parts of a quarter ring. True if there was more than one part."""
        cdef uint32_t bids = slot.book.bid.count, asks = slot.book.ask.count, count = bids + asks, i
        cdef uint8_t mark
        cdef fh_change change
        cdef const fh_level *level
        memset(&change, 0, sizeof(change))
        flags = FH_SNAPSHOT | (flags & (FH_TS_SUSPECT | FH_INEXACT))
        if count == 0:
            change.price = FH_UNDEFINED
            self.put_level(slot, &change, flags | FH_RESET | FH_LAST, session, ts_recv_ns)
        for i in range(count):
            level = &slot.book.bid.level[bids - 1 - i] if i < bids else &slot.book.ask.level[count - 1 - i]
            change.price, change.size = level.price, level.size
            change.side = FH_BID if i < bids else FH_ASK
            mark = flags | FH_RESET if i == 0 else flags
            if i + 1 == count or (i + 1) % self.part_max == 0:
                mark |= FH_LAST
            self.put_level(slot, &change, mark, session, ts_recv_ns)
            if i + 1 < count and mark & FH_LAST:
                fh_ring_flush(&self.writer)
        slot.book_dirty = 1
        self.touch_row(slot)
        return count > self.part_max

    cdef void put_level(self, fh_slot *slot, const fh_change *change, uint8_t flags, uint16_t session,
                        uint64_t ts_recv_ns) noexcept nogil:
        cdef fh_record *record = fh_ring_slot(&self.writer)
        record.ts_recv_ns = ts_recv_ns
        record.ts_event_ns = slot.book_ts_event_ns
        record.instrument = slot.instrument
        record.kind = FH_LEVEL
        record.flags = flags | change.flags
        record.session = session
        record.body.level.price = change.price
        record.body.level.size = change.size
        record.body.level.sequence = slot.chain.last
        record.body.word[3] = change.side | <int64_t>(<uint64_t>change.order_count << 32)
        fh_ring_commit(&self.writer)

    cdef void put_touch(self, fh_slot *slot, bint always, uint16_t session, uint64_t ts_recv_ns) noexcept nogil:
        """A TOUCH record if the best price or size of a side changed, or always behind a snapshot."""
        cdef const fh_level *bid = fh_book_best(&slot.book.bid)
        cdef const fh_level *ask = fh_book_best(&slot.book.ask)
        cdef fh_record *record
        cdef int64_t touch[4]
        touch[0] = bid.price if bid != NULL else FH_UNDEFINED
        touch[1] = bid.size if bid != NULL else 0
        touch[2] = ask.price if ask != NULL else FH_UNDEFINED
        touch[3] = ask.size if ask != NULL else 0
        if bid != NULL and ask != NULL and bid.price >= ask.price:
            slot.stats.crossed += 1
            self.counters.counter[FH_COUNTER_book_crossed] += 1
        if not always and touch[0] == slot.touch[0] and touch[1] == slot.touch[1] and touch[2] == slot.touch[2] \
                and touch[3] == slot.touch[3]:
            return
        memcpy(slot.touch, touch, sizeof(touch))
        record = fh_ring_slot(&self.writer)
        record.ts_recv_ns = ts_recv_ns
        record.ts_event_ns = slot.book_ts_event_ns
        record.instrument = slot.instrument
        record.kind = FH_TOUCH
        record.flags = FH_LAST
        record.session = session
        memcpy(record.body.word, touch, sizeof(touch))
        fh_ring_commit(&self.writer)
        slot.l1.bid_price, slot.l1.bid_size, slot.l1.ask_price, slot.l1.ask_size = touch[0], touch[1], touch[2], touch[3]
        slot.l1.ts_recv_ns = ts_recv_ns
        slot.l1.ts_event_ns = slot.book_ts_event_ns
        self.touch_row(slot)

    cdef void put_status(self, uint32_t instrument, uint32_t code, uint32_t detail, uint64_t a, uint64_t b, uint64_t c,
                         uint16_t session, uint64_t ts_recv_ns) noexcept nogil:
        cdef fh_record *record = fh_ring_slot(&self.writer)
        record.ts_recv_ns = ts_recv_ns
        record.ts_event_ns = 0
        record.instrument = instrument
        record.kind = FH_STATUS
        record.flags = FH_LAST
        record.session = session
        record.body.status.code, record.body.status.detail = code, detail
        record.body.status.a, record.body.status.b, record.body.status.c = a, b, c
        fh_ring_commit(&self.writer)

    cdef void put_clock(self, uint64_t now_mono_ns) noexcept nogil:
        """Tie the two clocks together, for readers and for our own histograms."""
        cdef uint64_t mono = clock_now(CLOCK_MONOTONIC), real = clock_now(CLOCK_REALTIME)
        self.clock_ns = now_mono_ns
        self.clock_offset_ns = real - mono
        self.put_status(FH_INSTRUMENT_NONE, FH_CLOCK, 0, mono, real, 0, 0, real)

    # -- rows and notices ------------------------------------------------------------------------------------

    cdef void touch_row(self, fh_slot *slot) noexcept nogil:
        if not slot.l1_dirty and slot.owned:
            slot.l1_dirty = 1
            self.dirty[self.dirty_count] = slot.instrument
            self.dirty_count += 1

    cdef void put_rows(self) noexcept nogil:
        """Write every row that changed, before head says that `state` reflects it."""
        cdef uint32_t i
        for i in range(self.dirty_count):
            self.put_row(&self.slots[self.dirty[i]])
        self.dirty_count = 0
        self.counters.counter[FH_COUNTER_records] += self.writer.position - self.flushed
        self.flushed = self.writer.position

    cdef void put_row(self, fh_slot *slot) noexcept nogil:
        cdef fh_state_row *row
        cdef fh_state_book head
        slot.l1_dirty = 0
        if self.state.file == NULL or slot.instrument >= self.state.row_max:
            return
        row = &(<fh_state_row *>self.state.rows)[slot.instrument]
        if row.owner != self.worker:
            return
        slot.l1.position = self.writer.position
        fh_state_put_l1(row, &slot.l1)
        self.counters.counter[FH_COUNTER_state_rows] += 1
        if slot.book_dirty and slot.book.bid.max:
            slot.book_dirty = 0
            memset(&head, 0, sizeof(head))
            head.position = self.writer.position
            head.sequence = slot.chain.last
            head.ts_event_ns = slot.book_ts_event_ns
            head.flags = slot.l1.flags
            head.price_exponent, head.size_exponent = slot.l1.price_exponent, slot.l1.size_exponent
            fh_state_put_book(row, &slot.book, &head)

    cdef void notice(self, fh_slot *slot, uint32_t channel, int code) noexcept nogil:
        """Tell the control plane. One bit a notice: nothing queues up, and a GAP takes back a LIVE not yet told."""
        cdef fh_stream *stream = &slot.stream[channel]
        if code == NOTICE_GAP:
            stream.notices &= ~<uint8_t>(1 << NOTICE_LIVE)
        stream.notices |= <uint8_t>(1 << code)
        if not slot.noticed:
            slot.noticed = 1
            self.noticed[self.notice_count] = slot.instrument
            self.notice_count += 1

    cdef fh_slot *known(self, Venue venue, uint32_t instrument) noexcept nogil:
        """The slot of an instrument, its exponents taken over when first met. NULL: beyond our tables."""
        cdef fh_slot *slot
        if instrument >= self.row_max or instrument >= venue.row_max:
            return NULL
        slot = &self.slots[instrument]
        if not slot.known:
            slot.known = 1
            slot.instrument = instrument
            slot.pending_first = slot.pending_last = NONE
            undefine(&slot.l1)
            slot.l1.price_exponent = venue.rows[instrument].price_exponent
            slot.l1.size_exponent = venue.rows[instrument].size_exponent
        return slot

    # -- held-back changes of a REST-seeded book -------------------------------------------------------------

    cdef bint hold_back(self, fh_slot *slot, const fh_event *event, uint16_t session, uint64_t ts_recv_ns) noexcept nogil:
        """Keep a message until its snapshot arrives. False if a pool is full; all of the instrument is to be dropped then."""
        cdef uint32_t left = event.body.book.change_count, at = event.body.book.change_begin, count
        cdef uint32_t index = self.pending_free, run
        cdef uint32_t *link
        cdef fh_pending *held
        if index == NONE:
            slot.stats.dropped += 1
            self.counters.counter[FH_COUNTER_book_pending_dropped] += 1
            return False
        held = &self.pending[index]
        self.pending_free = held.next
        held.event, held.ts_recv_ns, held.session, held.next, held.run = event[0], ts_recv_ns, session, NONE, NONE
        if slot.pending_first == NONE:
            slot.pending_first = index
        else:
            self.pending[slot.pending_last].next = index
        slot.pending_last = index
        slot.pending_count += 1
        link = &held.run
        while left:
            run = self.run_free
            if run != NONE:
                self.run_free = self.runs[run].next
            elif self.run_used < RUN_COUNT_MAX:
                run = self.run_used
                self.run_used += 1
            else:
                return False
            count = min(left, <uint32_t>RUN_SIZE)
            memcpy(self.runs[run].change, &self.batch.changes[at], count * sizeof(fh_change))
            self.runs[run].next = NONE
            link[0] = run
            link = &self.runs[run].next
            left -= count
            at += count
        return True

    cdef void pending_pop(self, fh_slot *slot) noexcept nogil:
        """Give the first held-back message and its runs back to their pools."""
        cdef uint32_t index = slot.pending_first, run = self.pending[index].run, next_run
        while run != NONE:
            next_run = self.runs[run].next
            self.runs[run].next = self.run_free
            self.run_free = run
            run = next_run
        slot.pending_first = self.pending[index].next
        self.pending[index].next = self.pending_free
        self.pending_free = index
        slot.pending_count -= 1

    cdef void pending_drop(self, fh_slot *slot) noexcept nogil:
        """Drop all that is held back for one instrument, counted."""
        while slot.pending_count:
            self.pending_pop(slot)
            slot.stats.dropped += 1
            self.counters.counter[FH_COUNTER_book_pending_dropped] += 1

    cdef int sync(self, Venue venue, fh_slot *slot, const fh_event *event, uint64_t ts_recv_ns) noexcept nogil:
        """Seed the book from a REST snapshot and chain what was held back: one step for a reader. A fh_verdict."""
        cdef fh_event held
        cdef uint64_t expected
        cdef uint16_t session = slot.book_session
        cdef int verdict
        fh_book_clear(&slot.book)
        venue.chain(&slot.chain, event)
        slot.chained = 1
        self.apply(slot, event)
        slot.book_ts_event_ns = event.ts_event_ns
        while slot.pending_count:
            expected = slot.chain.last
            recall(self, slot, &held)
            session = self.pending[slot.pending_first].session
            verdict = venue.chain(&slot.chain, &held)
            if verdict == FH_VERDICT_AHEAD:
                fh_book_clear(&slot.book)
                memset(&slot.chain, 0, sizeof(fh_chain))
                return verdict
            if verdict == FH_VERDICT_GAP:
                self.broken(slot, expected, held.body.book.prev if held.body.book.has_prev else held.body.book.first,
                            session, ts_recv_ns, True)
                return verdict
            self.pending_pop(slot)
            if verdict == FH_VERDICT_OLD:
                slot.stats.stale += 1
                self.counters.counter[FH_COUNTER_book_stale] += 1
                continue
            self.apply(slot, &held)
            slot.stats.updates += 1
            slot.book_ts_event_ns = held.ts_event_ns
        slot.book_session = session
        slot.stats.snapshots += 1
        self.counters.counter[FH_COUNTER_book_snapshots] += 1
        self.live(slot, session, ts_recv_ns, self.put_book(slot, event.flags, session, ts_recv_ns))
        return FH_VERDICT_APPLY

    # -- control plane ---------------------------------------------------------------------------------------

    cdef fh_slot *slot_at(self, instrument_id) except NULL:
        if not 0 <= instrument_id < self.row_max:
            raise ValueError(f"instrument {instrument_id} is not in this worker's table of {self.row_max} rows")
        return &self.slots[<uint32_t>instrument_id]

    cdef const char *copied(self, bytes data) except NULL:
        """data with the padding a decoder may touch. Valid until the next call."""
        cdef size_t size = len(data) + <size_t>FH_JSON_PAD
        if size > self.padded_size:
            self.padded = <char *>realloc(self.padded, 2 * size)
            if self.padded == NULL:
                self.padded_size = 0
                raise MemoryError(f"no memory for a frame of {len(data)} bytes")
            memset(self.padded, 0, 2 * size)
            self.padded_size = 2 * size
        memcpy(self.padded, <const char *>data, len(data))
        return self.padded

    def feed(self, Venue venue not None, uint32_t session, bytes payload not None, uint64_t ts_recv_ns):
        """frame() for Python: tests and replays. Answers the number of events or a negative fh_error."""
        return self.frame(venue, session, self.copied(payload), len(payload), ts_recv_ns)

    def unlisted(self, Venue venue not None, bytes payload not None):
        """A symbol of this frame that the venue's table does not know, or None. Publishes and counts nothing."""
        fh_batch_clear(&self.batch)
        self.batch.accept_inexact = 1
        if venue.decode(self.copied(payload), len(payload), 0, &self.batch) < 0 or not self.batch.unlisted:
            return None
        return self.batch.unlisted_symbol.at[:self.batch.unlisted_symbol.size].decode()

    def carried(self):
        """What the events of the last frame fed left behind, where it carries a venue's update id: a list of
        (instrument, kind, id, bid price, bid size, ask price, ask size), of the quote itself or of the live book."""
        cdef const fh_event *event
        cdef fh_slot *slot
        cdef uint32_t i
        found = []
        for i in range(self.batch.event_count):
            event = &self.batch.events[i]
            slot = &self.slots[event.instrument]
            if event.kind == FH_QUOTE and event.sequence:
                found.append((event.instrument, FH_QUOTE, event.sequence, event.body.word[0], event.body.word[1],
                              event.body.word[2], event.body.word[3]))
            elif event.kind == FH_LEVEL and slot.book_state == BOOK_LIVE and event.body.book.last == slot.chain.last:
                found.append((event.instrument, FH_LEVEL, slot.chain.last, slot.touch[0], slot.touch[1],
                              slot.touch[2], slot.touch[3]))
        return found

    def last_frame(self):
        """(events, ignored, unlisted, control) of the last frame fed: what became of it."""
        return self.batch.event_count, self.batch.ignored, self.batch.unlisted, self.control

    def turn(self, now_mono_ns=None):
        """flush() for Python, at a given or the present CLOCK_MONOTONIC."""
        self.flush(clock_now(CLOCK_MONOTONIC) if now_mono_ns is None else <uint64_t>now_mono_ns)
        if self.resumed_any:            # the shard of our predecessor came in one piece: later streams are new
            self.interrupted.clear()
            self.resumed_any = 0

    def add_stream(self, Venue venue not None, instrument_id, channel, uint32_t depth=0, snapshot=""):
        """Keep a stream of an instrument: its row in `state` becomes ours, and a book gets its levels.

        Called once for every line that carries the stream. snapshot: "in_band", "rest" or "window"."""
        cdef uint8_t index = channel_index(channel)
        if self.slot_at(instrument_id) == NULL or instrument_id >= venue.row_max:
            raise ValueError(f"{venue.name} has no row {instrument_id}: add the instrument before its stream")
        if snapshot not in SEEDS:
            raise ValueError(f"snapshot {snapshot!r} is not known; use in_band, rest or window")
        if not has_lines(self.slot_at(instrument_id)):
            self.slot_at(instrument_id).known = 0   # the row may have got other exponents, or another symbol
            if instrument_id in self.inherited:     # readers of a resumed ring know these, whatever the plan says
                price_exponent, size_exponent = self.inherited.pop(instrument_id)
                venue.rows[<uint32_t>instrument_id].price_exponent = price_exponent
                venue.rows[<uint32_t>instrument_id].size_exponent = size_exponent
        cdef fh_slot *slot = self.known(venue, instrument_id)
        cdef fh_stream *stream = &slot.stream[index]
        if index == FH_CHANNEL_BOOK and slot.book.bid.max == 0 and fh_book_init(&slot.book, self.level_max) < 0:
            raise MemoryError(f"no memory for a book of {self.level_max} levels a side")
        stream.removed = 0
        stream.lines += 1
        if stream.lines == 1:
            stream.first_pending = 1
        slot.owned = 1
        if self.state.file != NULL and slot.instrument < self.state.row_max:
            (<fh_state_row *>self.state.rows)[slot.instrument].owner = self.worker
        if index == FH_CHANNEL_BOOK and slot.book_state == BOOK_NONE:
            slot.seed = SEEDS[snapshot]
            slot.depth = min(depth, self.level_max)
            slot.book_state = BOOK_WAITING
        if stream.lines == 1 and instrument_id in self.interrupted:
            self.resumed(slot, index)

    cdef void resumed(self, fh_slot *slot, int index) noexcept:
        """Our predecessor died with this stream: what came meanwhile is missing, and that is said before anything later of it."""
        cdef fh_stream *stream = &slot.stream[index]
        if index == FH_CHANNEL_BOOK:
            slot.l1.status = FH_GAP
            slot.l1.flags |= FH_STALE
            self.counters.counter[FH_COUNTER_book_gaps] += 1
        elif index in (FH_CHANNEL_TRADE, FH_CHANNEL_AGG_TRADE, FH_CHANNEL_LIQUIDATION):
            stream.gap_before = 1
        else:
            return
        stream.gaps += 1
        self.put_status(slot.instrument, FH_GAP, index, 0, 0, 0, 0, clock_now(CLOCK_REALTIME))
        self.resumed_any = 1

    def remove_stream(self, instrument_id, channel):
        """One line less. Behind the last one, what still arrives is dropped, and a book is forgotten."""
        cdef fh_slot *slot = self.slot_at(instrument_id)
        cdef uint8_t index = channel_index(channel)
        cdef fh_stream *stream = &slot.stream[index]
        if stream.lines == 0:
            raise ValueError(f"instrument {instrument_id} has no {CHANNELS[index]} stream to remove")
        stream.lines -= 1
        if stream.lines:
            return
        stream.removed = 1
        stream.session_count = 0
        stream.sequence = stream.seen = 0
        stream.old_run = stream.gap_before = 0
        if index == FH_CHANNEL_BOOK:
            self.pending_drop(slot)
            fh_book_clear(&slot.book)
            memset(&slot.chain, 0, sizeof(fh_chain))
            slot.book_state = BOOK_NONE
            slot.l1.status = 0
            slot.l1.bid_price = slot.l1.ask_price = FH_UNDEFINED
            slot.l1.bid_size = slot.l1.ask_size = 0
            slot.book_dirty = 1
            self.touch_row(slot)

    def resubscribed(self, instrument_id, channel):
        """The stream was asked for anew: first data is pending, and a book waits for its snapshot."""
        cdef fh_slot *slot = self.slot_at(instrument_id)
        cdef uint8_t index = channel_index(channel)
        slot.stream[index].first_pending = 1
        if index != FH_CHANNEL_BOOK or slot.book_state == BOOK_NONE:
            return
        if slot.book_state == BOOK_LIVE:
            self.broken(slot, slot.chain.last + 1, 0, slot.book_session, clock_now(CLOCK_REALTIME), False)
        self.pending_drop(slot)
        slot.book_state = BOOK_WAITING
        self.resync_told(slot)

    def hold(self, instrument_id):
        """Hold back changes from now on: a REST snapshot was asked for."""
        cdef fh_slot *slot = self.slot_at(instrument_id)
        if slot.book_state == BOOK_NONE or slot.seed != SEED_REST:
            raise ValueError(f"instrument {instrument_id} has no book that starts from REST")
        if slot.book_state == BOOK_LIVE or slot.book_state == BOOK_SYNCING:
            return
        slot.book_state = BOOK_SYNCING
        self.resync_told(slot)

    cdef void resync_told(self, fh_slot *slot):
        """RESYNC behind a GAP: somebody is at it."""
        if slot.l1.status == FH_GAP:
            self.counters.counter[FH_COUNTER_book_resyncs] += 1
            self.put_status(slot.instrument, FH_RESYNC, FH_CHANNEL_BOOK, 0, 0, 0, slot.book_session, clock_now(CLOCK_REALTIME))

    def snapshot(self, Venue venue not None, instrument_id, bytes body not None, uint64_t ts_recv_ns):
        """A REST snapshot arrived. "LIVE"; "SYNCING": too old, fetch another; "GAP": the held-back changes do not
        chain; "MALFORMED": not decodable, counted, what is held back stays."""
        cdef fh_slot *slot = self.slot_at(instrument_id)
        cdef const char *text = self.copied(body)
        cdef int decoded = FH_ERROR_DIGITS, verdict
        if slot.book_state == BOOK_NONE or slot.seed != SEED_REST:
            raise ValueError(f"instrument {instrument_id} has no book that starts from REST")
        self.batch.accept_inexact = 0
        while decoded == FH_ERROR_DIGITS:
            fh_batch_clear(&self.batch)
            decoded = venue.decode_snapshot(text, len(body), instrument_id, ts_recv_ns, &self.batch)
            if decoded == FH_ERROR_DIGITS and not self.lower(venue, ts_recv_ns, slot.book_session):
                if self.batch.accept_inexact:
                    break
                self.batch.accept_inexact = 1
        if decoded < 0:
            self.refuse(decoded, text, len(body), ts_recv_ns, slot.book_session)
            return "MALFORMED"
        if slot.book_state == BOOK_LIVE and self.batch.events[0].body.book.last <= slot.chain.last:
            return "LIVE"
        verdict = self.sync(venue, slot, &self.batch.events[0], ts_recv_ns)
        if verdict == FH_VERDICT_AHEAD:
            slot.book_state = BOOK_SYNCING
            self.notice(slot, FH_CHANNEL_BOOK, NOTICE_AHEAD)
        return STATE_NAMES[slot.book_state]

    def status(self, instrument_id, uint32_t code, uint32_t detail=0, uint64_t a=0, uint64_t b=0, uint64_t c=0,
               uint32_t session=0):
        """A STATUS record of an instrument, or (None) of the whole ring, and the row that follows from it."""
        cdef uint32_t instrument = FH_INSTRUMENT_NONE if instrument_id is None else instrument_id
        cdef fh_slot *slot
        if instrument_id is not None:
            slot = self.slot_at(instrument_id)
            if code == FH_STALE_STREAM:
                slot.l1.flags |= FH_STALE
            elif code == FH_LIVE and slot.l1.status != FH_GAP:
                slot.l1.flags &= ~FH_STALE
            self.touch_row(slot)
        self.put_status(instrument, code, detail, a, b, c, session, clock_now(CLOCK_REALTIME))
        self.turn()

    def session_lost(self, uint32_t session, instruments):
        """A connection died. A stream no other line carries is broken: GAP now, before anything later of it."""
        cdef fh_slot *slot
        cdef uint64_t now = clock_now(CLOCK_REALTIME)
        cdef int index
        for instrument_id in instruments:
            slot = self.slot_at(instrument_id)
            for index in range(CHANNEL_MAX):
                line_lost(&slot.stream[index], session)
                if slot.stream[index].lines and slot.stream[index].session_count == 0:
                    self.stream_lost(slot, index, session, now)
            if slot.book_state == BOOK_LIVE and slot.book_session == session and not (slot.chained and slot.chain.last):
                self.broken(slot, slot.chain.last + 1, 0, session, now, True)   # the other line never fed this book
        self.turn()

    cdef void stream_lost(self, fh_slot *slot, int index, uint16_t session, uint64_t now):
        cdef fh_stream *stream = &slot.stream[index]
        if index == FH_CHANNEL_BOOK:
            if slot.book_state == BOOK_LIVE or slot.book_state == BOOK_SYNCING:
                self.broken(slot, slot.chain.last + 1, 0, session, now, False)
        elif index in (FH_CHANNEL_TRADE, FH_CHANNEL_AGG_TRADE, FH_CHANNEL_LIQUIDATION) and not stream.gap_before:
            stream.gap_before = 1
            stream.gaps += 1
            self.put_status(slot.instrument, FH_GAP, index, 0, 0, 0, session, now)

    def notices(self):
        """What happened since the last call: (instrument, channel index, NOTICE_*, a, b), an instrument's in order."""
        cdef fh_slot *slot
        cdef uint32_t i
        cdef int index, code
        cdef object a, b
        found = []
        for i in range(self.notice_count):
            slot = &self.slots[self.noticed[i]]
            slot.noticed = 0
            for index in range(CHANNEL_MAX):
                for code in (NOTICE_FIRST_DATA, NOTICE_EXPONENT, NOTICE_PENDING_FULL, NOTICE_AHEAD, NOTICE_GAP, NOTICE_LIVE):
                    if slot.stream[index].notices >> code & 1:
                        a, b = 0, 0
                        if code == NOTICE_GAP:
                            a, b = slot.gap_a, slot.gap_b
                        elif code == NOTICE_EXPONENT:
                            a, b = slot.l1.price_exponent, slot.l1.size_exponent
                        found.append((slot.instrument, index, code, a, b))
                slot.stream[index].notices = 0
        self.notice_count = 0
        return found

    def stream_stats(self, instrument_id, channel):
        """(receive time of the last message, messages, gaps, state) of a stream."""
        cdef fh_slot *slot = self.slot_at(instrument_id)
        cdef uint8_t index = channel_index(channel)
        cdef fh_stream *stream = &slot.stream[index]
        if index == FH_CHANNEL_BOOK:
            state = STATE_NAMES[slot.book_state]
        else:
            state = "NONE" if not stream.lines else "PENDING" if stream.first_pending else "LIVE"
        return stream.last_ns, stream.messages, stream.gaps, state

    def book_stats(self, instrument_id):
        """What became of a book's messages, as a dict; levels held now."""
        cdef fh_slot *slot = self.slot_at(instrument_id)
        cdef fh_book_stats *stats = &slot.stats
        return {"state": STATE_NAMES[slot.book_state], "snapshots": stats.snapshots, "updates": stats.updates,
                "stale": stats.stale, "dropped": stats.dropped, "gaps": stats.gaps, "crossed": stats.crossed,
                "checksum_ok": stats.checksum_ok, "checksum_bad": stats.checksum_bad,
                "levels": [slot.book.bid.count, slot.book.ask.count], "held": slot.pending_count}

    def book_touch(self, instrument_id):
        """(venue's id, bid price, bid size, ask price, ask size) of a live book; None of another."""
        cdef fh_slot *slot = self.slot_at(instrument_id)
        if slot.book_state != BOOK_LIVE:
            return None
        return slot.chain.last, slot.touch[0], slot.touch[1], slot.touch[2], slot.touch[3]

    def counter(self, name):
        """Value of a counter by its name in fh_counters.h."""
        cdef int i
        for i in range(FH_COUNTER_COUNT):
            if fh_counter_name(i).decode() == name:
                return self.counters.counter[i]
        raise KeyError(name)

    @property
    def position(self):
        """Next position of the ring."""
        return self.writer.position

    @property
    def epoch(self):
        return self.writer.ring.epoch

    @property
    def counters_address(self):
        """Address of fh_counters, for the worker's own figures."""
        return <size_t>self.counters


# -- straight-line helpers -----------------------------------------------------------------------------------

cdef inline void line_seen(fh_stream *stream, uint16_t session) noexcept nogil:
    """Remember that a session carries the stream; the latest first. More than LINE_MAX: the oldest is forgotten."""
    cdef int i, at = stream.session_count
    for i in range(stream.session_count):
        if stream.session[i] == session:
            at = i
    if at == stream.session_count:
        if stream.session_count < LINE_MAX:
            stream.session_count += 1
        else:
            at = LINE_MAX - 1
    while at > 0:
        stream.session[at] = stream.session[at - 1]
        at -= 1
    stream.session[0] = session


cdef void line_lost(fh_stream *stream, uint16_t session) noexcept nogil:
    cdef int i, kept = 0
    for i in range(stream.session_count):
        if stream.session[i] != session:
            stream.session[kept] = stream.session[i]
            kept += 1
    stream.session_count = kept


cdef bint has_lines(fh_slot *slot) noexcept nogil:
    cdef int index
    for index in range(CHANNEL_MAX):
        if slot.stream[index].lines:
            return True
    return False


cdef inline void count_flags(fh_counters *counters, uint8_t flags) noexcept nogil:
    if flags & FH_INEXACT:
        counters.counter[FH_COUNTER_inexact] += 1
    if flags & FH_OVERFLOW:
        counters.counter[FH_COUNTER_overflow] += 1
    if flags & FH_TS_SUSPECT:
        counters.counter[FH_COUNTER_ts_suspect] += 1


cdef void undefine(fh_state_l1 *l1) noexcept nogil:
    """No value yet: undefined, not zero."""
    l1.bid_price = l1.ask_price = l1.quote_bid_price = l1.quote_ask_price = FH_UNDEFINED
    l1.trade_price = l1.trade_size = l1.mark_price = l1.index_price = FH_UNDEFINED
    l1.funding_e12 = l1.open_interest = FH_UNDEFINED


cdef inline void remember(fh_slot *slot, const fh_event *event) noexcept nogil:
    """Last values of an instrument, as its row will show them. A quote is also the touch where we keep no book."""
    cdef fh_state_l1 *l1 = &slot.l1
    cdef const int64_t *word = &event.body.word[0]
    if event.kind == FH_QUOTE:
        l1.quote_bid_price, l1.quote_bid_size, l1.quote_ask_price, l1.quote_ask_size = word[0], word[1], word[2], word[3]
        if slot.book_state == BOOK_NONE:
            l1.bid_price, l1.bid_size, l1.ask_price, l1.ask_size = word[0], word[1], word[2], word[3]
            l1.sequence = event.sequence
            l1.flags &= ~FH_STALE
    elif event.kind == FH_TRADE:
        l1.trade_price, l1.trade_size, l1.trade_id = word[0], word[1], <uint64_t>word[2]
        l1.trade_aggressor = <uint8_t>(word[3] & 0xff)
    elif event.kind == FH_MARK:
        l1.mark_price = word[0]
    elif event.kind == FH_INDEX:
        l1.index_price = word[0]
    elif event.kind == FH_FUNDING:
        l1.funding_e12, l1.funding_next_ns = word[0], <uint64_t>word[2]
    elif event.kind == FH_OPEN_INTEREST:
        l1.open_interest = word[0]


cdef inline void collect(Publisher self, uint8_t side, const fh_change *change) noexcept nogil:
    if side == FH_BID:
        self.out_bid[self.out_bid_count] = change[0]
        self.out_bid_count += 1
    else:
        self.out_ask[self.out_ask_count] = change[0]
        self.out_ask_count += 1


cdef void collect_deleted(Publisher self, uint8_t side, int64_t price) noexcept nogil:
    cdef fh_change change
    memset(&change, 0, sizeof(change))
    change.price, change.side = price, side
    collect(self, side, &change)


cdef void recall(Publisher self, fh_slot *slot, fh_event *event) noexcept nogil:
    """Bring the first held-back message and its changes to the front of the batch, ready to apply."""
    cdef fh_pending *held = &self.pending[slot.pending_first]
    cdef uint32_t left = held.event.body.book.change_count, at = 0, run = held.run, count
    event[0] = held.event
    event.body.book.change_begin = 0
    while left:
        count = min(left, <uint32_t>RUN_SIZE)
        memcpy(&self.batch.changes[at], self.runs[run].change, count * sizeof(fh_change))
        run = self.runs[run].next
        at += count
        left -= count


cdef bint pending_rescale(Publisher self, fh_slot *slot, int price_power, int size_power) noexcept nogil:
    """Bring held-back changes to new exponents. False at the first that does not fit: they are to be dropped."""
    cdef uint32_t index = slot.pending_first, run, left, i
    cdef fh_change *change
    while index != NONE:
        run, left = self.pending[index].run, self.pending[index].event.body.book.change_count
        while left:
            for i in range(min(left, <uint32_t>RUN_SIZE)):
                change = &self.runs[run].change[i]
                if not fits(change.price, price_power) or not fits(change.size, size_power):
                    return False
                scale(&change.price, price_power)
                scale(&change.size, size_power)
            left -= min(left, <uint32_t>RUN_SIZE)
            run = self.runs[run].next
        index = self.pending[index].next
    return True


def failed(int answer, name):
    """The error of a file that could not be taken: what the system says, or that it is no file of this build."""
    if answer == FH_ERROR_SYSTEM:
        return OSError(errno_now, f"{os.strerror(errno_now)}: {name}")
    return ValueError(f"{name} was not written by this build of feedhandler, or is damaged: stop the instance and start it again")
