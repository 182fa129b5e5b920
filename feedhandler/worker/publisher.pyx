# cython: language_level=3
"""The publisher: events of decoded frames into books, state rows and the ring of one worker.

    frame → decode → (arbitrate | chain → book → checksum) → records → rows → head
                                 ↳ held: by a line that is ahead, or in private until the instrument is taken over

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
    uint64_t UINT64_MAX
    int __builtin_clz(unsigned int value) nogil

cdef enum:
    EVENT_COUNT_MAX = 16384         # events of one frame: the largest all-market array has about 3,000
    CHANGE_COUNT_MAX = 131072       # levels of one frame: a 16 MiB frame of 130-byte rows
    OUT_COUNT_MAX = 3 * 131072      # each change may push one level out by size and one by depth
    PENDING_COUNT_MAX = 65536       # held events of all instruments: 20,000 a second for 2 s, and as many again
    RUN_COUNT_MAX = 65536           # their changes: 1,966,080 levels, 48 MB, touched only when used
    JOIN_HOLD_MAX = 4096            # events a joining line holds: it may be ahead by a second of 4,000
    ARRIVAL_COUNT_MAX = 16384       # first arrivals remembered, a power of two: half a second behind at 30,000 a second
    DIGITS_TRIES_MAX = 4096         # raises in one frame: two for every instrument of an all-market array
    OLD_RUN_MAX = 1024              # older-than-window events in a row before we believe that ids started again
    GAP_WAIT_MAX = 64               # messages of the line ahead held while another line may bring what it missed
    LINE_QUIET_NS = 250000000       # events of one time come together; a line that is so far behind is as good as lost
    PRIVATE_HOLD_NS = 2000000000    # how long an event of a private instrument is kept: a hand-over and the detection of a death take less
    ALONE_HOLD_FACTOR = 5           # … and so many times as long while there is no supervisor: the one that follows has to start first
    SEEN_BITS = 64                  # window of trade ids remembered for late arrivals
    HEADROOM_POWER = 1              # a rescaled value must fit with one more decimal digit
    SAMPLE_SIZE = 80                # bytes of a refused frame kept for `errors`
    LOAD_BUCKETS = 72               # windows of up to 262,143 messages
    LOAD_WINDOW_NS = 10000000       # the smallest of the three; the others are 10 and 100 times as long
    KIND_AGGREGATE = 13             # beside enum fh_kind: a TRADE whose body says that it is an aggregate
    CLOCK_PERIOD_NS = 1000000000    # a CLOCK record once a second
    DECODE_SAMPLE_MASK = 7          # every eighth frame is timed: a clock read costs as much as a quote

# Kinds of records of each channel, where nothing of it came in private: bit n is kind n.
KINDS = (1 << FH_TRADE, 1 << KIND_AGGREGATE | 1 << FH_TRADE, 1 << FH_QUOTE, 0, 1 << FH_TICKER, 1 << FH_MARK, 1 << FH_INDEX, 1 << FH_FUNDING,
         1 << FH_OPEN_INTEREST, 1 << FH_LIQUIDATION, 1 << FH_CANDLE, 1 << FH_GREEKS, 0)
LINE_NAMES = ("none", "joining", "met", "none")
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
        self.writer.fd = self.state.fd = self.readers.fd = -1
        self.row_max, self.level_max, self.worker, self.hold_ns = row_max, level_max, worker, PRIVATE_HOLD_NS
        self.inherited, self.interrupted, self.venues, self.handovers = {}, set(), {}, {}
        self.slots = <fh_slot *>calloc(row_max, sizeof(fh_slot))
        self.dirty = <uint32_t *>malloc(row_max * sizeof(uint32_t))
        self.noticed = <uint32_t *>malloc(row_max * sizeof(uint32_t))
        self.pending = <fh_pending *>malloc(PENDING_COUNT_MAX * sizeof(fh_pending))
        self.runs = <fh_run *>malloc(RUN_COUNT_MAX * sizeof(fh_run))
        self.recalled = <fh_change *>malloc(CHANGE_COUNT_MAX * sizeof(fh_change))
        self.arrivals = <fh_arrival *>calloc(ARRIVAL_COUNT_MAX, sizeof(fh_arrival))
        self.out_bid = <fh_change *>malloc(OUT_COUNT_MAX * sizeof(fh_change))
        self.out_ask = <fh_change *>malloc(OUT_COUNT_MAX * sizeof(fh_change))
        if (not self.slots or not self.dirty or not self.noticed or not self.pending or not self.runs
                or not self.recalled or not self.arrivals or not self.out_bid or not self.out_ask
                or fh_batch_init(&self.batch, EVENT_COUNT_MAX, CHANGE_COUNT_MAX) < 0):
            raise MemoryError(f"no memory for {row_max} instruments and their held-back changes")
        self.age_first = self.age_last = NONE
        self.pending_free = self.run_free = NONE    # taken in order first, so that memory never needed is never touched
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
        cdef uint32_t i, index
        self.close()
        if self.slots:
            for i in range(self.row_max):
                for index in range(CHANNEL_MAX):
                    free(self.slots[i].stream[index].load)
                if self.slots[i].book.bid.max:
                    fh_book_free(&self.slots[i].book)
        free(self.slots)
        free(self.dirty)
        free(self.noticed)
        free(self.pending)
        free(self.runs)
        free(self.recalled)
        free(self.arrivals)
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
        if self.age_count and self.clock_offset_ns:
            while self.age_count and elapsed(self.pending[self.age_first].ts_recv_ns, now_mono_ns + self.clock_offset_ns) > self.hold_ns:
                self.evict(&self.slots[self.pending[self.age_first].event.instrument], True)
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
        """A frame was lost. A book without sequence and checksum cannot notice, so it is broken here and now; of one without a
        sequence that another line carries, this line has to join again."""
        cdef uint32_t i
        cdef fh_slot *slot
        cdef fh_stream *stream
        cdef fh_line *line
        for i in range(self.row_max):
            slot = &self.slots[i]
            stream = &slot.stream[<int>FH_CHANNEL_BOOK]
            line = line_of(stream, session)
            if line == NULL or line.state != LINE_MET or slot.book_state != BOOK_LIVE or slot.chain.last or slot.seed == SEED_WINDOW:
                continue
            if met_count(stream) > 1:
                self.rejoin(slot, line)
                arrange(stream)
            elif not slot.chained:
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
        if not slot.private:
            self.put_status(slot.instrument, FH_INSTRUMENT_CHANGED, 0, <uint64_t><int64_t>row.price_exponent,
                            <uint64_t><int64_t>row.size_exponent, before, session, ts_recv_ns)
        if slot.book_state == BOOK_LIVE and not slot.private:
            if self.put_book(slot, 0, session, ts_recv_ns):
                self.put_status(slot.instrument, FH_LIVE, FH_CHANNEL_BOOK, 0, 0, 0, session, ts_recv_ns)
            self.put_touch(slot, True, session, ts_recv_ns)
        self.notice(slot, 0, NOTICE_EXPONENT)
        self.touch_row(slot)
        return True

    cdef bint rescale(self, fh_slot *slot, int price_power, int size_power) noexcept nogil:
        """Bring every value held for an instrument to new exponents; all or nothing, but for held events: they are dropped."""
        if not l1_rescale(&slot.l1, price_power, size_power, False):
            return False
        if slot.book.bid.max and not fh_book_rescale(&slot.book, price_power, size_power):
            return False
        l1_rescale(&slot.l1, price_power, size_power, True)
        if not held_rescale(self, slot, price_power, size_power):
            self.held_drop(slot)
            if slot.book_state == BOOK_SYNCING:
                slot.book_state = BOOK_WAITING
                self.notice(slot, FH_CHANNEL_BOOK, NOTICE_PENDING_FULL)
        slot.book_dirty = 1
        return True

    # -- one event -------------------------------------------------------------------------------------------

    cdef void event(self, Venue venue, const fh_event *event, uint16_t session, uint64_t ts_recv_ns) noexcept nogil:
        """One venue event to its slot. Its channel is bounded by the decoder's contract; so is its instrument."""
        cdef fh_slot *slot = self.known(venue, event.instrument)
        cdef fh_stream *stream
        cdef uint64_t position = self.writer.position
        if slot == NULL or event.channel >= CHANNEL_MAX:
            self.counters.counter[FH_COUNTER_frames_unlisted] += 1
            return
        stream = &slot.stream[event.channel]
        if stream.removed:
            self.counters.counter[FH_COUNTER_events_ignored] += 1
            return
        stream.last_ns = ts_recv_ns
        stream.messages += 1
        if stream.load != NULL:
            loaded(stream.load, ts_recv_ns, 1)
        if stream.first_pending:
            stream.first_pending = 0
            self.notice(slot, event.channel, NOTICE_FIRST_DATA)
        if event.ts_event_ns:
            fh_histogram_add(&self.counters.stage[<int>FH_STAGE_VENUE], elapsed(event.ts_event_ns, ts_recv_ns))
            if event.kind == FH_TRADE or event.kind == FH_QUOTE or event.kind == FH_LEVEL:
                lag_seen(&self.counters.session[session % <uint32_t>FH_SESSION_MAX], <int64_t>(ts_recv_ns - event.ts_event_ns))
        if event.flags & (FH_INEXACT | FH_OVERFLOW | FH_TS_SUSPECT):
            count_flags(self.counters, event.flags)
        if stream.usual == <uint32_t>session + 1:
            self.lone_event(venue, slot, stream, event, session, ts_recv_ns)
        else:
            self.line_event(venue, slot, stream, event, session, ts_recv_ns)
        stream.records += self.writer.position - position

    cdef void lone_event(self, Venue venue, fh_slot *slot, fh_stream *stream, const fh_event *event, uint16_t session,
                         uint64_t ts_recv_ns) noexcept nogil:
        """An event of a stream that one line feeds: nothing to arbitrate but what the venue itself repeats."""
        if event.kind == FH_LEVEL:
            self.book_message(venue, slot, stream, event, session, ts_recv_ns)
        elif event.sequence == 0:
            paced(stream, session, event.ts_event_ns)
            self.plain(slot, stream, event, session, ts_recv_ns)
        elif self.arrived(stream, event):
            self.plain(slot, stream, event, session, ts_recv_ns)
        else:
            self.counters.counter[FH_COUNTER_duplicates] += 1

    cdef bint arrived(self, fh_stream *stream, const fh_event *event) noexcept nogil:
        """Sequence arbitration: whether this is the first arrival of the event's sequence on any line.

        Trades may come late within a window and are never lost; of other kinds an older one is out of date. What came before
        the first one, or lies in a gap that was told, is nobody's to bring any more: a standby may have it."""
        cdef uint64_t behind
        if event.sequence > stream.sequence:
            behind = event.sequence - stream.sequence
            if stream.sequence == 0 or stream.gap_before:
                stream.seen = UINT64_MAX
            else:
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
        stream.sequence, stream.seen, stream.frame, stream.old_run = event.sequence, UINT64_MAX, self.frame_count, 0
        stream.gap_before = 1   # the venue's ids started again, and what came until we believed it is lost
        stream.gaps += 1
        return True

    cdef void pass_on(self, fh_slot *slot, fh_stream *stream, const fh_event *event, uint16_t session,
                      uint64_t ts_recv_ns) noexcept nogil:
        """An event that won arbitration where something is to be done but publishing it."""
        if slot.private:
            self.enlist(slot, stream, event, NULL, session, ts_recv_ns)
            return
        if slot.backed and event.kind == FH_QUOTE:
            self.note_quote(slot, event.sequence, 1)
        self.plain(slot, stream, event, session, ts_recv_ns)

    cdef void note_quote(self, fh_slot *slot, uint64_t sequence, uint32_t ahead) noexcept nogil:
        """A QUOTE does not carry its sequence: say in the row which one comes next (ahead: 1), for whoever reads the ring when we are dead.

        The position is taken away first and stored last, so that a death in between leaves the quote before."""
        cdef fh_state_row *row
        if self.state.file == NULL or slot.instrument >= self.state.row_max:
            return
        row = &(<fh_state_row *>self.state.rows)[slot.instrument]
        if row.owner != self.worker:
            return
        slot.quote_turn ^= 1
        fh_store_release(&row.quote_position[slot.quote_turn], <uint64_t>0)
        fh_store_release(&row.quote_sequence[slot.quote_turn], sequence)
        fh_store_release(&row.quote_position[slot.quote_turn], self.writer.position + ahead)

    cdef void forget_quote(self, fh_slot *slot) noexcept nogil:
        """Nobody may go by what the row says of quotes: the positions are of another ring, or are not kept any more."""
        cdef fh_state_row *row = self.row_of(slot)
        if row != NULL:
            fh_store_release(&row.quote_position[0], <uint64_t>0)
            fh_store_release(&row.quote_position[1], <uint64_t>0)

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

    # -- lines: several sessions that carry one stream -------------------------------------------------------

    cdef void line_event(self, Venue venue, fh_slot *slot, fh_stream *stream, const fh_event *event, uint16_t session,
                         uint64_t ts_recv_ns) noexcept nogil:
        """An event of a stream with several lines, or of a new line: whichever brings it first publishes it."""
        cdef fh_line *line = self.line_at(slot, stream, session)
        cdef int fate
        if stream.usual == <uint32_t>session + 1:
            self.lone_event(venue, slot, stream, event, session, ts_recv_ns)
        elif line == NULL or line.state == LINE_DROPPED:
            self.counters.counter[FH_COUNTER_duplicates] += 1
        elif event.kind == FH_LEVEL:
            self.book_message(venue, slot, stream, event, session, ts_recv_ns)
        else:
            line.since_ns = ts_recv_ns
            fate = self.plain_fate(stream, line, event)
            self.count_line(stream, event.instrument << 4 | event.channel, event.sequence or event.ts_event_ns + line.nth, fate,
                            session, ts_recv_ns)
            if fate == FATE_PUBLISH:
                self.pass_on(slot, stream, event, session, ts_recv_ns)
            elif fate == FATE_HOLD:
                self.hold_line(slot, line, event, NULL, session, ts_recv_ns)
            self.joiners(venue, slot, stream)

    cdef fh_line *line_at(self, fh_slot *slot, fh_stream *stream, uint16_t session) noexcept nogil:
        """The line of a session, new ones added: alone it has met the stream at once. NULL: LINE_MAX others carry it."""
        cdef fh_line *line = line_of(stream, session)
        cdef int i
        if line != NULL:
            return line
        for i in range(LINE_MAX):
            if stream.line_count == LINE_MAX and stream.line[i].state == LINE_DROPPED:
                self.line_forget(slot, stream, stream.line[i].session)
        if stream.line_count == LINE_MAX:
            return NULL
        line = &stream.line[stream.line_count]
        stream.line_count += 1
        memset(line, 0, sizeof(fh_line))
        line.session = session
        line.state = LINE_JOINING if met_count(stream) else LINE_MET
        line.exact = line.state == LINE_MET
        arrange(stream)
        return line

    cdef void line_forget(self, fh_slot *slot, fh_stream *stream, uint16_t session) noexcept nogil:
        """Take a session out of a stream's lines, with what it holds."""
        cdef fh_line *line = line_of(stream, session)
        if line == NULL:
            return
        self.line_empty(slot, line)
        arrange(stream)
        stream.line_count -= 1
        line[0] = stream.line[stream.line_count]
        if stream.feeder == <uint32_t>session + 1:
            stream.feeder = 0
        arrange(stream)

    cdef void lines_forget(self, fh_slot *slot, fh_stream *stream, bint dropped) noexcept nogil:
        """All lines of a stream; dropped: also those whose last messages may still arrive."""
        cdef int i = 0
        while i < stream.line_count:
            if dropped or stream.line[i].state != LINE_DROPPED:
                self.line_forget(slot, stream, stream.line[i].session)
            else:
                i += 1

    cdef void rejoin(self, fh_slot *slot, fh_line *line) noexcept nogil:
        """A line that may have missed something has to meet what is published once more."""
        self.line_empty(slot, line)
        line.state, line.exact = LINE_JOINING, 0
        line.first = line.ts_ns = 0

    cdef int plain_fate(self, fh_stream *stream, fh_line *line, const fh_event *event) noexcept nogil:
        """What becomes of an event that is no book message: FATE_*, and its place is noted."""
        if event.sequence == 0:
            return line.fate if stream.sequence else timed_fate(stream, line, event.ts_event_ns)
        if line.state == LINE_JOINING:
            if event.sequence > stream.sequence:
                if line.first == 0:
                    line.first, line.timed = event.sequence, 0
                line.fate = FATE_HOLD
                return FATE_HOLD
            line.state = LINE_MET
        line.fate = FATE_PUBLISH if self.arrived(stream, event) and not told(stream, event) else FATE_DUPLICATE
        return line.fate

    cdef void count_line(self, fh_stream *stream, uint32_t key, uint64_t number, int fate, uint16_t session,
                         uint64_t ts_recv_ns) noexcept nogil:
        """Line statistics: who was first, and by how much another was behind where the first arrival is remembered."""
        cdef fh_session_row *row = &self.counters.session[session % <uint32_t>FH_SESSION_MAX]
        cdef uint64_t mixed = (number ^ <uint64_t>key << 40) * <uint64_t>2654435761 * <uint64_t>2654435761
        cdef fh_arrival *arrival = &self.arrivals[mixed >> 40 & (ARRIVAL_COUNT_MAX - 1)]
        if fate == FATE_DUPLICATE:
            self.counters.counter[FH_COUNTER_duplicates] += 1
        if stream.line_count < 2:
            return
        if fate == FATE_PUBLISH:
            row.first += 1
            arrival.number, arrival.ts_recv_ns, arrival.key = number, ts_recv_ns, key + 1
        elif fate == FATE_DUPLICATE:
            row.second += 1
            if arrival.key == key + 1 and arrival.number == number:
                row.behind_ns += elapsed(arrival.ts_recv_ns, ts_recv_ns)
                row.behind_count += 1

    cdef void joiners(self, Venue venue, fh_slot *slot, fh_stream *stream) noexcept nogil:
        """After something was published: lines that waited for it have met the stream, and what they hold follows."""
        cdef fh_line *line
        cdef int i = 0
        while i < stream.line_count:
            line = &stream.line[i]
            i += 1
            if line.state == LINE_JOINING and reached(slot, stream, line):
                line.state = LINE_MET
            if line.state == LINE_MET and line.held.count and not chains(&self.pending[line.held.first].event):
                self.release(venue, slot, stream, line)
                i = 0       # what it brought may be what another one waits for
        if stream.usual == 0:
            arrange(stream)

    cdef void release(self, Venue venue, fh_slot *slot, fh_stream *stream, fh_line *line) noexcept nogil:
        """Publish what a line holds, in its order: what is not published yet."""
        cdef uint64_t frame = self.frame_count, ts_ns = 0
        cdef uint32_t index, nth = 0
        cdef fh_event *event
        cdef int fate = FATE_DUPLICATE
        while line.held.count:
            index = self.pop(&line.held)
            event = &self.pending[index].event
            if event.kind == FH_LEVEL and event.body.book.last:
                fate = FATE_PUBLISH if event.body.book.last > slot.chain.last else FATE_DUPLICATE
            elif event.sequence:
                self.frame_count = self.pending[index].frame
                fate = FATE_PUBLISH if self.arrived(stream, event) else FATE_DUPLICATE
                self.frame_count = frame
            elif stream.sequence == 0:
                nth = nth + 1 if event.ts_event_ns == ts_ns else 1
                ts_ns = event.ts_event_ns
                fate = timed_ahead(stream, line.session, ts_ns, nth)
            if fate != FATE_PUBLISH or not self.put_held(venue, slot, stream, index):
                self.give(index)

    cdef bint put_held(self, Venue venue, fh_slot *slot, fh_stream *stream, uint32_t index) noexcept nogil:
        """Publish an event that was held, with the time and the session it came by. True if it is held on, in private."""
        cdef fh_pending *held = &self.pending[index]
        cdef bint whole = held.event.kind == FH_LEVEL and (held.event.flags & FH_SNAPSHOT or held.event.body.book.window)
        if slot.private and (held.event.kind != FH_LEVEL or held.event.body.book.last):
            self.enlist_held(slot, stream, index)
            return True
        if held.event.kind != FH_LEVEL:
            self.pass_on(slot, stream, &held.event, held.session, held.ts_recv_ns)
        elif whole:
            self.book_whole(venue, slot, &held.event, self.recall(index), held.session, held.ts_recv_ns)
        elif slot.book_state == BOOK_LIVE:
            self.book_delta(venue, slot, &held.event, self.recall(index), held.session, held.ts_recv_ns)
        return False

    cdef void line_book(self, Venue venue, fh_slot *slot, fh_stream *stream, const fh_event *event, uint16_t session,
                        uint64_t ts_recv_ns) noexcept nogil:
        """A message of a live book that several lines carry."""
        cdef const fh_book_event *book = &event.body.book
        cdef const fh_change *changes = &self.batch.changes[book.change_begin]
        cdef fh_line *line = line_of(stream, session)
        cdef bint delta = chains(event)
        cdef int fate
        line.since_ns = ts_recv_ns
        if delta:
            fate = self.chain_fate(venue, slot, stream, line, event, ts_recv_ns)
        elif book.last == 0:
            fate = self.timed_book_fate(slot, stream, line, event, changes)
        else:
            fate = self.whole_fate(slot, stream, line, event)
        if fate == FATE_BROKEN:
            return
        self.count_line(stream, event.instrument << 4 | event.channel, book.last or event.ts_event_ns + line.nth, fate, session, ts_recv_ns)
        if fate == FATE_HOLD:
            self.hold_line(slot, line, event, changes, session, ts_recv_ns)
        elif fate == FATE_PUBLISH:
            if delta:
                self.book_change(venue, slot, event, changes, session, ts_recv_ns)
            elif event.flags & FH_SNAPSHOT or book.window:
                self.book_whole(venue, slot, event, changes, session, ts_recv_ns)
            else:
                self.book_delta(venue, slot, event, changes, session, ts_recv_ns)
            self.drain(venue, slot, False)
        self.joiners(venue, slot, stream)

    cdef int chain_fate(self, Venue venue, fh_slot *slot, fh_stream *stream, fh_line *line, const fh_event *event,
                        uint64_t ts_recv_ns) noexcept nogil:
        """Where the venue numbers its changes its chain decides. What a line holds is behind what fits of it later.

        In private a chain may begin without a snapshot, at any change: the book that it continues is handed over later."""
        cdef const fh_book_event *book = &event.body.book
        cdef fh_chain chain = slot.chain
        cdef int verdict = FH_VERDICT_APPLY
        if chain.state == FH_CHAIN_WAITING:
            chain.last, chain.state = book.last, FH_CHAIN_LIVE
            stream.floor_open = 1
        else:
            verdict = venue.chain(&chain, event)
        if verdict == FH_VERDICT_APPLY or verdict == FH_VERDICT_OLD:
            slot.chain = chain
            line.state = LINE_MET
            self.line_empty(slot, line)
            if verdict == FH_VERDICT_APPLY:
                return FATE_PUBLISH
            slot.stats.stale += 1
            self.counters.counter[FH_COUNTER_book_stale] += 1
            return FATE_DUPLICATE
        if line.state == LINE_JOINING and line.first == 0:
            line.first, line.timed = book.last, 0
        if line.state == LINE_JOINING or (line.held.count < GAP_WAIT_MAX and unstuck(stream, line)):
            return FATE_HOLD
        self.broken(slot, slot.chain.last, book.prev if book.has_prev else book.first, line.session, ts_recv_ns, True)
        return FATE_BROKEN

    cdef int whole_fate(self, fh_slot *slot, fh_stream *stream, fh_line *line, const fh_event *event) noexcept nogil:
        """A numbered window or snapshot. A joining line's snapshot does not reset a live book: it says where the line begins.

        Numbers that go back are believed of the line that fed the book last: the venue started again."""
        cdef uint64_t last = event.body.book.last
        if last <= slot.silent_until and last > slot.sequence:
            line.state = LINE_MET
            return FATE_PUBLISH
        if line.state == LINE_MET:
            return FATE_PUBLISH if last > slot.chain.last or stream.feeder == <uint32_t>line.session + 1 else FATE_DUPLICATE
        if last <= slot.chain.last:
            line.state = LINE_MET
            return FATE_DUPLICATE
        if not event.body.book.window:
            self.line_empty(slot, line)
            line.first = 0
        if line.first == 0:
            line.first, line.timed = last, 0
        return FATE_HOLD if event.body.book.window else FATE_DUPLICATE

    cdef int timed_book_fate(self, fh_slot *slot, fh_stream *stream, fh_line *line, const fh_event *event,
                             const fh_change *changes) noexcept nogil:
        """A book without numbers: by time. A joining line's snapshot does not reset a live book: it says where the line begins,
        and where it is the published book the line has met it."""
        if not event.flags & FH_SNAPSHOT or event.body.book.window:
            return timed_fate(stream, line, event.ts_event_ns)
        if active_count(stream) == 1:
            return FATE_PUBLISH
        self.rejoin(slot, line)
        line.ts_ns, line.timed = event.ts_event_ns, 1
        line.first = event.ts_event_ns + 1 if event.ts_event_ns else 0
        if same_book(&slot.book, changes, event.body.book.change_count):
            line.state, line.exact, line.ts_ns, line.nth = LINE_MET, 1, stream.ts_ns, stream.nth
        return FATE_DUPLICATE

    cdef bint drain(self, Venue venue, fh_slot *slot, bint silent) noexcept nogil:
        """Apply what lines hold and what chains now; silent: without records. True if anything was."""
        cdef fh_stream *stream = &slot.stream[<int>FH_CHANNEL_BOOK]
        cdef fh_line *line
        cdef bint any = False
        cdef int i = 0
        while i < stream.line_count:
            line = &stream.line[i]
            i += 1
            while line.held.count and chains(&self.pending[line.held.first].event):
                if not self.drain_one(venue, slot, line, silent, &any):
                    break
                if not silent and slot.chain.state == FH_CHAIN_WAITING:     # it broke the book
                    return any
                if any:
                    i = 0
        return any

    cdef bint drain_one(self, Venue venue, fh_slot *slot, fh_line *line, bint silent, bint *any) noexcept nogil:
        """The first message a line holds, if it chains or is old. False if it has to wait."""
        cdef uint32_t index = line.held.first
        cdef fh_pending *held = &self.pending[index]
        cdef fh_chain chain = slot.chain
        cdef int verdict = venue.chain(&chain, &held.event)
        any[0] = False
        if verdict != FH_VERDICT_APPLY and verdict != FH_VERDICT_OLD:
            return False
        self.pop(&line.held)
        slot.chain = chain
        line.state = LINE_MET
        any[0] = verdict == FH_VERDICT_APPLY
        if slot.private and verdict == FH_VERDICT_APPLY:
            self.enlist_held(slot, &slot.stream[<int>FH_CHANNEL_BOOK], index)
            return True
        if verdict == FH_VERDICT_OLD:
            slot.stats.stale += 1
            self.counters.counter[FH_COUNTER_book_stale] += 1
        elif silent:
            self.apply(slot, &held.event, self.recall(index))
            slot.stats.updates += 1
            slot.book_ts_event_ns = held.event.ts_event_ns
            slot.book_session = held.session
        else:
            self.book_change(venue, slot, &held.event, self.recall(index), held.session, held.ts_recv_ns)
        self.give(index)
        return True

    # -- books -----------------------------------------------------------------------------------------------

    cdef void book_message(self, Venue venue, fh_slot *slot, fh_stream *stream, const fh_event *event, uint16_t session,
                           uint64_t ts_recv_ns) noexcept nogil:
        """One book message: a snapshot seeds, a change follows the chain, and without a seed waits or is dropped."""
        cdef const fh_book_event *book = &event.body.book
        cdef const fh_change *changes = &self.batch.changes[book.change_begin]
        self.counters.counter[FH_COUNTER_book_messages] += 1
        self.counters.counter[FH_COUNTER_book_levels] += book.change_count
        if slot.book_state == BOOK_NONE:
            self.counters.counter[FH_COUNTER_events_ignored] += 1
        elif stream.usual == 0 and (slot.book_state == BOOK_LIVE or (slot.private and chains(event))):
            self.line_book(venue, slot, stream, event, session, ts_recv_ns)
        elif event.flags & FH_SNAPSHOT or book.window:
            if slot.book_state == BOOK_LIVE and book.window and book.last and book.last <= slot.chain.last and stream.feeder != <uint32_t>session + 1:
                self.counters.counter[FH_COUNTER_duplicates] += 1   # what a line that is gone was ahead of this one
                return
            self.book_whole(venue, slot, event, changes, session, ts_recv_ns)
        elif slot.book_state == BOOK_LIVE:
            if book.last == 0:
                paced(stream, session, event.ts_event_ns)
            self.book_delta(venue, slot, event, changes, session, ts_recv_ns)
        elif slot.book_state == BOOK_SYNCING:
            if not self.keep(line_of(stream, session), event, changes, session, ts_recv_ns):
                slot.stats.dropped += 1
                self.counters.counter[FH_COUNTER_book_pending_dropped] += 1
                self.pending_drop(slot)
                slot.book_state = BOOK_GAP if slot.l1.status == FH_GAP else BOOK_WAITING
                self.notice(slot, FH_CHANNEL_BOOK, NOTICE_PENDING_FULL)
        else:
            slot.stats.dropped += 1
            self.counters.counter[FH_COUNTER_book_pending_dropped] += 1

    cdef void book_whole(self, Venue venue, fh_slot *slot, const fh_event *event, const fh_change *changes, uint16_t session,
                         uint64_t ts_recv_ns) noexcept nogil:
        """A full book in band: a window, or a snapshot that seeds; other lines of it have to meet it then."""
        cdef const fh_book_event *book = &event.body.book
        cdef bint numbered = book.last != 0
        if numbered and book.window and (slot.private or (slot.quiet and slot.book_state == BOOK_LIVE)):
            self.whole_quiet(venue, slot, event, changes, session, ts_recv_ns)
            return
        if not book.window:
            self.pending_drop(slot)
        if slot.private:
            self.fifo_drop(slot, FH_CHANNEL_BOOK)
            slot.stream[<int>FH_CHANNEL_BOOK].floor = book.last
            slot.stream[<int>FH_CHANNEL_BOOK].floor_open = 0
        slot.silent_until = slot.foreign = 0
        slot.quiet = slot.private
        fh_book_clear(&slot.book)
        venue.chain(&slot.chain, event)
        if book.window:
            slot.chain.last, slot.chain.state = book.last, FH_CHAIN_LIVE
        slot.chained = numbered or book.has_checksum
        self.apply(slot, event, changes)
        slot.changed = slot.sequence
        if not book.window or slot.book_state != BOOK_LIVE:
            self.seeded(slot, event, session)
        slot.stream[<int>FH_CHANNEL_BOOK].feeder = <uint32_t>session + 1
        slot.book_session = session
        slot.stats.snapshots += 1
        self.counters.counter[FH_COUNTER_book_snapshots] += 1
        if self.check(venue, slot, event) == 0:
            self.broken(slot, book.checksum, 0, session, ts_recv_ns, True)
            return
        slot.book_ts_event_ns = event.ts_event_ns
        self.live(slot, session, ts_recv_ns, not slot.private and self.put_book(slot, event.flags, session, ts_recv_ns))

    cdef void seeded(self, fh_slot *slot, const fh_event *event, uint16_t session) noexcept nogil:
        """A snapshot came on this line: it has met the book, every other one has yet to."""
        cdef fh_stream *stream = &slot.stream[<int>FH_CHANNEL_BOOK]
        cdef fh_line *line
        cdef int i
        stream.ts_ns, stream.nth = event.ts_event_ns if event.body.book.last == 0 else 0, 1
        stream.feeder = <uint32_t>session + 1
        for i in range(stream.line_count):
            line = &stream.line[i]
            if line.session == session:
                line.state, line.exact, line.ts_ns, line.nth = LINE_MET, 1, stream.ts_ns, 1
            elif line.state != LINE_DROPPED:
                self.rejoin(slot, line)
        arrange(stream)

    cdef void book_delta(self, Venue venue, fh_slot *slot, const fh_event *event, const fh_change *changes, uint16_t session,
                         uint64_t ts_recv_ns) noexcept nogil:
        """A change to a live book: chained, then as book_change()."""
        cdef const fh_book_event *book = &event.body.book
        cdef uint64_t expected = slot.chain.last
        cdef int verdict = venue.chain(&slot.chain, event)
        if verdict == FH_VERDICT_APPLY:
            self.book_change(venue, slot, event, changes, session, ts_recv_ns)
        elif verdict == FH_VERDICT_OLD:
            slot.stats.stale += 1
            self.counters.counter[FH_COUNTER_book_stale] += 1
        else:
            self.broken(slot, expected, book.prev if book.has_prev else book.first, session, ts_recv_ns, True)

    cdef void book_change(self, Venue venue, fh_slot *slot, const fh_event *event, const fh_change *changes, uint16_t session,
                          uint64_t ts_recv_ns) noexcept nogil:
        """A change that is next in line: applied in private, checked, and only then published."""
        if slot.quiet:
            self.change_quiet(venue, slot, event, changes, session, ts_recv_ns)
        elif self.applied(venue, slot, event, changes, session, ts_recv_ns):
            self.put_delta(slot, event, session, ts_recv_ns)
            self.put_touch(slot, False, session, ts_recv_ns)

    cdef bint applied(self, Venue venue, fh_slot *slot, const fh_event *event, const fh_change *changes, uint16_t session,
                      uint64_t ts_recv_ns) noexcept nogil:
        """The change is in the book, which is right by the venue's checksum; False: it is broken."""
        self.apply(slot, event, changes)
        slot.stats.updates += 1
        if self.check(venue, slot, event) == 0:
            self.broken(slot, event.body.book.checksum, 0, session, ts_recv_ns, True)
            return False
        slot.book_ts_event_ns = event.ts_event_ns
        return True

    cdef void change_quiet(self, Venue venue, fh_slot *slot, const fh_event *event, const fh_change *changes, uint16_t session,
                           uint64_t ts_recv_ns) noexcept nogil:
        """A change that is not just published: of a private book, or one that a dead owner published already.

        In private it is kept for a while, and the levels trail; one without a number is of no use later and is applied at once."""
        if slot.private and event.body.book.last:
            self.enlist(slot, &slot.stream[<int>FH_CHANNEL_BOOK], event, changes, session, ts_recv_ns)
            return
        if not slot.private and event.body.book.last > slot.silent_until:
            self.broken(slot, slot.silent_until, event.body.book.last, session, ts_recv_ns, True)   # it ended between two of ours
            return
        if self.applied(venue, slot, event, changes, session, ts_recv_ns) and not slot.private and slot.sequence == slot.silent_until:
            self.silent_end(slot, session, ts_recv_ns)

    cdef void whole_quiet(self, Venue venue, fh_slot *slot, const fh_event *event, const fh_change *changes, uint16_t session,
                          uint64_t ts_recv_ns) noexcept nogil:
        """The same of a numbered window."""
        slot.chain.last, slot.chain.state = event.body.book.last, FH_CHAIN_LIVE
        if slot.private:
            if slot.book_state != BOOK_LIVE:
                slot.sequence = slot.changed = 0
                self.live(slot, session, ts_recv_ns, False)
            self.enlist(slot, &slot.stream[<int>FH_CHANNEL_BOOK], event, changes, session, ts_recv_ns)
            return
        if event.body.book.last > slot.silent_until:
            slot.silent_until = slot.quiet = 0
            self.book_whole(venue, slot, event, changes, session, ts_recv_ns)
            return
        fh_book_clear(&slot.book)
        self.apply(slot, event, changes)
        slot.book_ts_event_ns = event.ts_event_ns
        if slot.sequence == slot.silent_until:
            self.silent_end(slot, session, ts_recv_ns)

    cdef void silent_end(self, fh_slot *slot, uint16_t session, uint64_t ts_recv_ns) noexcept nogil:
        """Our book is where a dead owner left it: a touch that it did not tell any more is told now, behind a whole book always."""
        slot.silent_until = slot.quiet = 0
        slot.stream[<int>FH_CHANNEL_BOOK].watched = 0
        arrange(&slot.stream[<int>FH_CHANNEL_BOOK])
        if slot.reset_due:
            slot.reset_due = 0
            self.put_book(slot, 0, session, ts_recv_ns)
        self.put_touch(slot, slot.touch_due, session, ts_recv_ns)
        if slot.touch_due:
            slot.touch_due = 0
            self.put_status(slot.instrument, FH_LIVE, FH_CHANNEL_BOOK, 0, 0, 0, session, ts_recv_ns)
        slot.book_dirty = 1
        self.touch_row(slot)

    cdef void apply(self, fh_slot *slot, const fh_event *event, const fh_change *changes) noexcept nogil:
        """Apply a message to the book, in order, collecting what changed in out_bid and out_ask."""
        cdef uint64_t refused = slot.book.levels_refused, absent = slot.book.deletes_absent
        cdef uint32_t i
        self.out_bid_count = self.out_ask_count = 0
        for i in range(event.body.book.change_count):
            self.apply_side(slot, &changes[i])
        if slot.depth:
            self.truncate(slot)
        self.counters.counter[FH_COUNTER_book_levels_refused] += slot.book.levels_refused - refused
        self.counters.counter[FH_COUNTER_book_deletes_absent] += slot.book.deletes_absent - absent
        slot.sequence = slot.l1.sequence = event.body.book.last

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
        if depth >= 0 or change.flags or slot.foreign or (change.order_count and size and slot.book.levels_refused == refused):
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
        self.lines_forget(slot, &slot.stream[<int>FH_CHANNEL_BOOK], False)
        fh_book_clear(&slot.book)
        memset(&slot.chain, 0, sizeof(fh_chain))
        slot.book_state = BOOK_GAP
        slot.gap_a, slot.gap_b = a, b
        slot.silent_until = slot.foreign = 0
        slot.quiet = slot.private
        if notice:
            self.notice(slot, FH_CHANNEL_BOOK, NOTICE_GAP)
        if slot.private:
            self.fifo_drop(slot, FH_CHANNEL_BOOK)
            slot.stream[<int>FH_CHANNEL_BOOK].floor_open = 1
            return
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
        if not slot.late:
            slot.l1.flags &= ~FH_STALE
        if not slot.private:
            self.put_touch(slot, True, session, ts_recv_ns)
        if (parts or not was_live) and not slot.private:
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
        record.body.level.sequence = slot.sequence
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
            head.sequence = slot.sequence
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
            undefine(&slot.l1)
            slot.l1.price_exponent = venue.rows[instrument].price_exponent
            slot.l1.size_exponent = venue.rows[instrument].size_exponent
        return slot

    # -- held events -----------------------------------------------------------------------------------------

    cdef bint keep(self, fh_line *line, const fh_event *event, const fh_change *changes, uint16_t session,
                   uint64_t ts_recv_ns) noexcept nogil:
        """Keep an event behind what its line holds already. False if a pool is full."""
        cdef uint32_t index = self.take(event, changes, session, ts_recv_ns) if line != NULL else NONE
        if index == NONE:
            return False
        append(self.pending, &line.held, index)
        return True

    cdef void hold_line(self, fh_slot *slot, fh_line *line, const fh_event *event, const fh_change *changes, uint16_t session,
                        uint64_t ts_recv_ns) noexcept nogil:
        """keep() of a line that is ahead. Without room it lets go of all it holds, and joins at a later event."""
        if line.held.count < JOIN_HOLD_MAX and self.keep(line, event, changes, session, ts_recv_ns):
            return
        self.rejoin(slot, line)

    cdef uint32_t take(self, const fh_event *event, const fh_change *changes, uint16_t session, uint64_t ts_recv_ns) noexcept nogil:
        """A copy of an event and its changes in the pools, all or nothing: NONE where they are full."""
        cdef uint32_t left = event.body.book.change_count if event.kind == FH_LEVEL else 0
        cdef uint32_t index, run, count
        cdef uint32_t *link
        cdef fh_pending *held
        while self.age_count and ((self.pending_free == NONE and self.pending_used == PENDING_COUNT_MAX)
                                  or (left and self.run_free == NONE and self.run_used + left // RUN_SIZE >= RUN_COUNT_MAX)):
            self.evict(&self.slots[self.pending[self.age_first].event.instrument], False)
        if self.pending_free == NONE and self.pending_used == PENDING_COUNT_MAX:
            return NONE
        index = self.pending_free
        if index != NONE:
            self.pending_free = self.pending[index].next
        else:
            index = self.pending_used
            self.pending_used += 1
        held = &self.pending[index]
        held.event, held.ts_recv_ns, held.frame, held.session = event[0], ts_recv_ns, self.frame_count, session
        held.run = held.next = NONE
        link = &held.run
        while left:
            run = self.run_free
            if run != NONE:
                self.run_free = self.runs[run].next
            elif self.run_used < RUN_COUNT_MAX:
                run = self.run_used
                self.run_used += 1
            else:
                self.give(index)
                return NONE
            count = min(left, <uint32_t>RUN_SIZE)
            memcpy(self.runs[run].change, changes, count * sizeof(fh_change))
            self.runs[run].next = NONE
            link[0] = run
            link = &self.runs[run].next
            left -= count
            changes += count
        return index

    cdef void give(self, uint32_t index) noexcept nogil:
        """Give a held event and its runs back to their pools."""
        cdef uint32_t run = self.pending[index].run, next_run
        while run != NONE:
            next_run = self.runs[run].next
            self.runs[run].next = self.run_free
            self.run_free = run
            run = next_run
        self.pending[index].next = self.pending_free
        self.pending_free = index

    cdef uint32_t pop(self, fh_queue *queue) noexcept nogil:
        """Take the first event out of a queue that has one; the caller gives it back."""
        cdef uint32_t index = queue.first
        queue.first = self.pending[index].next
        queue.count -= 1
        return index

    cdef const fh_change *recall(self, uint32_t index) noexcept nogil:
        """The changes of a held message in one piece. Valid until the next call."""
        cdef uint32_t left = self.pending[index].event.body.book.change_count, at = 0, run = self.pending[index].run, count
        while left:
            count = min(left, <uint32_t>RUN_SIZE)
            memcpy(&self.recalled[at], self.runs[run].change, count * sizeof(fh_change))
            run = self.runs[run].next
            at += count
            left -= count
        return self.recalled

    cdef void line_empty(self, fh_slot *slot, fh_line *line) noexcept nogil:
        """Drop what a line holds; of a book that is counted."""
        cdef uint32_t index
        while line.held.count:
            index = self.pop(&line.held)
            if self.pending[index].event.kind == FH_LEVEL:
                slot.stats.dropped += 1
                self.counters.counter[FH_COUNTER_book_pending_dropped] += 1
            self.give(index)

    cdef void pending_drop(self, fh_slot *slot) noexcept nogil:
        """Drop what the lines of a book hold."""
        cdef fh_stream *stream = &slot.stream[<int>FH_CHANNEL_BOOK]
        cdef int i
        for i in range(stream.line_count):
            self.line_empty(slot, &stream.line[i])

    cdef void enlist(self, fh_slot *slot, fh_stream *stream, const fh_event *event, const fh_change *changes, uint16_t session,
                     uint64_t ts_recv_ns) noexcept nogil:
        """Keep an event of a private instrument that won arbitration. Without room even for this one, everything older goes."""
        cdef uint32_t index = self.take(event, changes, session, ts_recv_ns)
        if index != NONE:
            self.enlist_held(slot, stream, index)
            return
        while slot.fifo.count:
            self.evict(slot, False)
        raise_floor(stream, event)
        if event.kind != FH_LEVEL:
            remember(slot, event)
        elif slot.book_state == BOOK_LIVE:
            self.apply(slot, event, changes)
            slot.changed = slot.sequence

    cdef void enlist_held(self, fh_slot *slot, fh_stream *stream, uint32_t index) noexcept nogil:
        """The same of one that a line held."""
        cdef fh_pending *held = &self.pending[index]
        if stream.floor_open:
            raise_floor(stream, &held.event)
            stream.floor_open, stream.floor_first = 0, 1
        stream.kinds |= <uint32_t>1 << kind_of(&held.event)
        held.nth = stream.nth
        held.older, held.newer = self.age_last, NONE
        if self.age_count:
            self.pending[self.age_last].newer = index
        else:
            self.age_first = index
        self.age_last = index
        self.age_count += 1
        append(self.pending, &slot.fifo, index)

    cdef void unage(self, uint32_t index) noexcept nogil:
        """Take an event of a private instrument out of the list of all by age."""
        cdef fh_pending *held = &self.pending[index]
        if held.older == NONE:
            self.age_first = held.newer
        else:
            self.pending[held.older].newer = held.newer
        if held.newer == NONE:
            self.age_last = held.older
        else:
            self.pending[held.newer].older = held.older
        self.age_count -= 1

    cdef void evict(self, fh_slot *slot, bint check) noexcept nogil:
        """Let the oldest event of a private instrument go: into its book, or into its last values. check: its checksum too."""
        cdef uint32_t index = self.pop(&slot.fifo)
        cdef fh_event *event = &self.pending[index].event
        self.unage(index)
        raise_floor(&slot.stream[event.channel], event)
        if event.kind != FH_LEVEL:
            remember(slot, event)
        elif slot.book_state == BOOK_LIVE and event.body.book.last > slot.sequence:
            if event.body.book.window:
                fh_book_clear(&slot.book)
            self.apply(slot, event, self.recall(index))
            if self.out_bid_count or self.out_ask_count:
                slot.changed = event.body.book.last
            slot.book_ts_event_ns = event.ts_event_ns
            slot.stats.updates += 1
            if check and event.body.book.has_checksum and self.wrong(slot, event):
                self.broken(slot, event.body.book.checksum, 0, self.pending[index].session, self.pending[index].ts_recv_ns, True)
        self.give(index)

    cdef bint wrong(self, fh_slot *slot, const fh_event *event) noexcept with gil:
        """Whether the venue's checksum is not that of the book as it is now."""
        return self.check(self.venue_of(slot), slot, event) == 0

    cdef void fifo_drop(self, fh_slot *slot, int channel) noexcept nogil:
        """Drop what is kept in private of one channel; -1: of all."""
        cdef fh_queue kept
        cdef uint32_t index
        kept.first = kept.last = kept.count = 0
        while slot.fifo.count:
            index = self.pop(&slot.fifo)
            if channel >= 0 and self.pending[index].event.channel != channel:
                append(self.pending, &kept, index)
                continue
            raise_floor(&slot.stream[self.pending[index].event.channel], &self.pending[index].event)
            self.unage(index)
            self.give(index)
        slot.fifo = kept

    cdef void held_drop(self, fh_slot *slot) noexcept nogil:
        """Drop whatever is held for an instrument: joining lines join at a later event."""
        cdef int index, i
        self.fifo_drop(slot, -1)
        for index in range(CHANNEL_MAX):
            for i in range(slot.stream[index].line_count):
                self.line_empty(slot, &slot.stream[index].line[i])
                slot.stream[index].line[i].first = 0

    cdef int sync(self, Venue venue, fh_slot *slot, const fh_event *event, uint64_t ts_recv_ns) noexcept nogil:
        """Seed the book from a REST snapshot and chain what was held back: one step for a reader. A fh_verdict."""
        cdef fh_stream *stream = &slot.stream[<int>FH_CHANNEL_BOOK]
        cdef fh_line *line
        cdef fh_pending *held
        cdef int i, verdict
        cdef fh_chain chain
        fh_book_clear(&slot.book)
        venue.chain(&slot.chain, event)
        slot.chained = 1
        self.apply(slot, event, &self.batch.changes[event.body.book.change_begin])
        slot.book_ts_event_ns = event.ts_event_ns
        self.drain(venue, slot, True)
        for i in range(stream.line_count):
            line = &stream.line[i]
            if line.held.count == 0:
                continue
            held = &self.pending[line.held.first]
            if unstuck(stream, line):       # another line is in the chain: this one is ahead of it
                line.state, line.first, line.timed = LINE_JOINING, held.event.body.book.last, 0
                continue
            chain = slot.chain
            verdict = venue.chain(&chain, &held.event)
            if verdict == FH_VERDICT_AHEAD:
                fh_book_clear(&slot.book)
                memset(&slot.chain, 0, sizeof(fh_chain))
            else:
                self.broken(slot, slot.chain.last, held.event.body.book.prev if held.event.body.book.has_prev
                            else held.event.body.book.first, held.session, ts_recv_ns, True)
            return verdict
        slot.stats.snapshots += 1
        self.counters.counter[FH_COUNTER_book_snapshots] += 1
        arrange(stream)
        self.live(slot, slot.book_session, ts_recv_ns, self.put_book(slot, event.flags, slot.book_session, ts_recv_ns))
        return FH_VERDICT_APPLY

    cdef int sync_private(self, Venue venue, fh_slot *slot, const fh_event *event) noexcept nogil:
        """Seed a private book from a REST snapshot where what is kept goes on from it. A fh_verdict; AHEAD: fetch a newer one."""
        cdef fh_chain chain = slot.chain
        cdef uint32_t left = slot.fifo.count, index = slot.fifo.first
        cdef int verdict = FH_VERDICT_OLD
        venue.chain(&chain, event)
        while left and verdict == FH_VERDICT_OLD:
            left -= 1
            if self.pending[index].event.kind == FH_LEVEL:
                verdict = venue.chain(&chain, &self.pending[index].event)
            index = self.pending[index].next
        if verdict == FH_VERDICT_GAP or verdict == FH_VERDICT_AHEAD:
            return FH_VERDICT_AHEAD
        if verdict == FH_VERDICT_OLD and slot.chain.state != FH_CHAIN_WAITING and slot.chain.last > event.body.book.last:
            return FH_VERDICT_AHEAD     # what it goes on with is not held any more
        if slot.chain.state == FH_CHAIN_WAITING:
            venue.chain(&slot.chain, event)
            slot.stream[<int>FH_CHANNEL_BOOK].floor = event.body.book.last
            slot.stream[<int>FH_CHANNEL_BOOK].floor_open = 0
        fh_book_clear(&slot.book)
        slot.chained = 1
        self.apply(slot, event, &self.batch.changes[event.body.book.change_begin])
        slot.book_ts_event_ns = event.ts_event_ns
        slot.stats.snapshots += 1
        self.counters.counter[FH_COUNTER_book_snapshots] += 1
        slot.changed = slot.sequence
        self.live(slot, slot.book_session, 0, False)
        return FH_VERDICT_APPLY

    # -- control plane ---------------------------------------------------------------------------------------

    cdef fh_slot *slot_at(self, instrument_id) except NULL:
        if not 0 <= instrument_id < self.row_max:
            raise ValueError(f"instrument {instrument_id} is not in this worker's table of {self.row_max} rows")
        return &self.slots[<uint32_t>instrument_id]

    cdef Venue venue_of(self, fh_slot *slot):
        return self.venues[slot.instrument]

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

    def supervised(self, bint on):
        """Whether there is a supervisor: one that died in the middle of a hand-over has to be followed before it can end."""
        self.hold_ns = PRIVATE_HOLD_NS if on else <uint64_t>ALONE_HOLD_FACTOR * PRIVATE_HOLD_NS

    def alive(self, uint64_t now_mono_ns):
        """flush() within a turn of the loop that takes long: readers see that we live. turn() ends it."""
        self.flush(now_mono_ns)

    def add_stream(self, Venue venue not None, instrument_id, channel, uint32_t depth=0, snapshot="", bint private=False):
        """Keep a stream of an instrument: its row in `state` becomes ours, and a book gets its levels.

        Called once for every line that carries the stream. snapshot: "in_band", "rest" or "window". private, where it is the
        first stream of the instrument: nothing of it is published, and the row stays another worker's, until take_over()."""
        cdef uint8_t index = channel_index(channel)
        if self.slot_at(instrument_id) == NULL or instrument_id >= venue.row_max:
            raise ValueError(f"{venue.name} has no row {instrument_id}: add the instrument before its stream")
        if snapshot not in SEEDS:
            raise ValueError(f"snapshot {snapshot!r} is not known; use in_band, rest or window")
        self.slot_at(instrument_id).late = 0
        if not has_lines(self.slot_at(instrument_id)):
            self.turned(self.slot_at(instrument_id), private)
            self.handovers.pop(instrument_id, None)
            self.slot_at(instrument_id).known = 0   # the row may have got other exponents, or another symbol
            if instrument_id in self.inherited:     # readers of a resumed ring know these, whatever the plan says
                price_exponent, size_exponent = self.inherited.pop(instrument_id)
                venue.rows[<uint32_t>instrument_id].price_exponent = price_exponent
                venue.rows[<uint32_t>instrument_id].size_exponent = size_exponent
        cdef fh_slot *slot = self.known(venue, instrument_id)
        cdef fh_stream *stream = &slot.stream[index]
        self.venues[instrument_id] = venue
        if index == FH_CHANNEL_BOOK and slot.book.bid.max == 0 and fh_book_init(&slot.book, self.level_max) < 0:
            raise MemoryError(f"no memory for a book of {self.level_max} levels a side")
        if stream.load == NULL:
            stream.load = <fh_load *>calloc(1, sizeof(fh_load))
            if stream.load == NULL:
                raise MemoryError("no memory for the load of a stream")
        stream.removed = 0
        stream.lines += 1
        if stream.lines == 1:
            stream.first_pending = stream.floor_open = 1
            stream.floor = stream.floor_id = stream.told_id = stream.kinds = 0
            stream.watched = slot.private
        slot.owned = not slot.private
        cdef fh_state_row *row = self.row_of(slot)
        if slot.owned and row != NULL and row.owner != self.worker:
            self.forget_quote(slot)
            row.owner = self.worker
        if index == FH_CHANNEL_BOOK and slot.book_state == BOOK_NONE:
            slot.seed = SEEDS[snapshot]
            slot.depth = min(depth, self.level_max)
            slot.book_state = BOOK_WAITING
        if stream.lines == 1 and slot.owned and instrument_id in self.interrupted:
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

    def remove_stream(self, instrument_id, channel, session=None):
        """One line less: that of a session, which others are not to wait for; where none of them has delivered yet, that is a gap.
        Behind the last one, what still arrives is dropped, and a book is forgotten."""
        cdef fh_slot *slot = self.slot_at(instrument_id)
        cdef uint8_t index = channel_index(channel)
        cdef fh_stream *stream = &slot.stream[index]
        cdef fh_line *line
        cdef bint fed
        if stream.lines == 0:
            raise ValueError(f"instrument {instrument_id} has no {CHANNELS[index]} stream to remove")
        stream.lines -= 1
        if stream.lines:
            if session is not None:
                line = line_of(stream, <uint16_t>session)
                fed = line != NULL and line.state == LINE_MET
                self.drop_line(instrument_id, channel, session)
                if fed and active_count(stream) == 0:
                    self.stream_lost(slot, index, session, clock_now(CLOCK_REALTIME), False)
            return
        stream.removed = 1
        self.lines_forget(slot, stream, True)
        stream.sequence = stream.seen = stream.ts_ns = 0
        stream.old_run = stream.gap_before = 0
        self.fifo_drop(slot, index)
        if not has_lines(slot):
            self.handovers.pop(instrument_id, None)
        if index == FH_CHANNEL_BOOK:
            fh_book_clear(&slot.book)
            memset(&slot.chain, 0, sizeof(fh_chain))
            slot.book_state = BOOK_NONE
            slot.silent_until = slot.foreign = 0
            slot.quiet = slot.private
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
        slot.stream[index].floor_open = max(slot.stream[index].floor_open, <uint8_t>1) if slot.private else 0
        if index != FH_CHANNEL_BOOK or slot.book_state == BOOK_NONE:
            return
        if slot.book_state == BOOK_LIVE:
            self.broken(slot, slot.chain.last + 1, 0, slot.book_session, clock_now(CLOCK_REALTIME), False)
        self.lines_forget(slot, &slot.stream[index], True)
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
        if slot.l1.status == FH_GAP and not slot.private:
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
        if slot.book_state == BOOK_LIVE and (slot.private or self.batch.events[0].body.book.last <= slot.chain.last):
            return "LIVE"
        if slot.private:
            verdict = self.sync_private(venue, slot, &self.batch.events[0])
        else:
            verdict = self.sync(venue, slot, &self.batch.events[0], ts_recv_ns)
        if verdict == FH_VERDICT_AHEAD:
            slot.book_state = BOOK_SYNCING
            self.notice(slot, FH_CHANNEL_BOOK, NOTICE_AHEAD)
        return STATE_NAMES[slot.book_state]

    def status(self, instrument_id, uint32_t code, uint32_t detail=0, uint64_t a=0, uint64_t b=0, uint64_t c=0,
               uint32_t session=0):
        """A STATUS record of an instrument, or (None) of the whole ring, and the row that follows from it. Of a private one: nothing.
        STALE with b set: what comes is late, and makes nothing fresh before LIVE."""
        cdef uint32_t instrument = FH_INSTRUMENT_NONE if instrument_id is None else instrument_id
        cdef fh_slot *slot
        if instrument_id is not None:
            slot = self.slot_at(instrument_id)
            if slot.private:
                return
            if code == FH_STALE_STREAM:
                slot.l1.flags |= FH_STALE
                slot.late |= b != 0
            elif code == FH_LIVE:
                slot.late = 0
                if slot.l1.status != FH_GAP:
                    slot.l1.flags &= ~FH_STALE
            self.touch_row(slot)
        self.put_status(instrument, code, detail, a, b, c, session, clock_now(CLOCK_REALTIME))
        self.turn()

    def line(self, instrument_id, channel, uint32_t session, uint64_t now_ns=0):
        """What a session is to a stream: "met", "joining" while it has not met what others publish, or "none".

        A line whose first time is the last one published has met it LINE_QUIET_NS later: nobody has more of that time then."""
        cdef fh_stream *stream = &self.slot_at(instrument_id).stream[channel_index(channel)]
        cdef fh_line *line = line_of(stream, session)
        if line != NULL and line.state == LINE_JOINING and line.timed and not line.exact and line.ts_ns == stream.ts_ns \
                and elapsed(line.since_ns, now_ns or clock_now(CLOCK_REALTIME)) > LINE_QUIET_NS:
            line.state, line.exact, line.nth = LINE_MET, 1, stream.nth
        return LINE_NAMES[line.state if line != NULL else 0]

    def drop_line(self, instrument_id, channel, uint32_t session):
        """The session was told to unsubscribe: it is no line any more, and what still arrives from it is a duplicate. No gap
        where another line has met the stream."""
        cdef fh_slot *slot = self.slot_at(instrument_id)
        cdef fh_stream *stream = &slot.stream[channel_index(channel)]
        cdef fh_line *line = line_of(stream, session)
        if line == NULL:
            line = self.line_at(slot, stream, session)
        if line == NULL or line.state == LINE_DROPPED:
            return
        arrange(stream)
        self.line_empty(slot, line)
        line.state = LINE_DROPPED
        if stream.feeder == session + 1:
            stream.feeder = 0
        self.line_gone(slot, channel_index(channel), session, clock_now(CLOCK_REALTIME))
        self.turn()

    def join_line(self, instrument_id, channel, uint32_t session):
        """The session was told to subscribe once more: what came before on it says nothing about what will come."""
        cdef fh_slot *slot = self.slot_at(instrument_id)
        self.line_forget(slot, &slot.stream[channel_index(channel)], session)

    def session_lost(self, uint32_t session, instruments):
        """A connection died. A stream that no other line has met is broken: GAP now, before anything later of it."""
        cdef fh_slot *slot
        cdef fh_stream *stream
        cdef uint64_t now = clock_now(CLOCK_REALTIME)
        cdef int index
        for instrument_id in instruments:
            slot = self.slot_at(instrument_id)
            slot.late = 0
            for index in range(CHANNEL_MAX):
                stream = &slot.stream[index]
                fed = stream.feeder == session + 1
                self.line_forget(slot, stream, session)
                if stream.lines and active_count(stream) == 0:
                    self.stream_lost(slot, index, session, now, False)
                elif stream.lines:
                    self.line_gone(slot, index, session, now)
                if fed and index == FH_CHANNEL_BOOK and slot.book_state == BOOK_LIVE and slot.chain.last == 0 \
                        and slot.seed != SEED_WINDOW and stream.ts_ns == 0:
                    self.broken(slot, 0, 0, session, now, True)   # no number, no time: the other line never fed this book
        self.turn()

    cdef void line_gone(self, fh_slot *slot, int index, uint16_t session, uint64_t now):
        """A line of several is gone. Was it the last that had met the stream, the joining ones go on behind a gap."""
        cdef fh_stream *stream = &slot.stream[index]
        cdef int i
        if met_count(stream):
            if index == FH_CHANNEL_BOOK and slot.book_state == BOOK_LIVE and not unstuck(stream, NULL):
                self.broken(slot, slot.chain.last + 1, 0, session, now, True)   # nobody is left who could bring what they miss
        elif active_count(stream):
            self.stream_lost(slot, index, session, now, True)
            for i in range(stream.line_count):
                if stream.line[i].state == LINE_JOINING and not met_count(stream):
                    stream.line[i].state, stream.line[i].exact = LINE_MET, 1
            self.joiners(self.venue_of(slot), slot, stream)
        arrange(stream)

    cdef void stream_lost(self, fh_slot *slot, int index, uint16_t session, uint64_t now, bint notice):
        """notice: tell the control plane, for a line is left that it has to start a resync on."""
        cdef fh_stream *stream = &slot.stream[index]
        if index == FH_CHANNEL_BOOK:
            if slot.book_state == BOOK_LIVE or slot.book_state == BOOK_SYNCING:
                self.broken(slot, slot.chain.last + 1, 0, session, now, notice)
        elif slot.private:
            stream.floor_open = 2
        elif index in (FH_CHANNEL_TRADE, FH_CHANNEL_AGG_TRADE, FH_CHANNEL_LIQUIDATION) and not stream.gap_before:
            stream.gap_before = 1
            stream.gaps += 1
            self.put_status(slot.instrument, FH_GAP, index, 0, 0, 0, session, now)

    # -- private instruments and hand-overs ------------------------------------------------------------------

    cdef void turned(self, fh_slot *slot, bint private) noexcept:
        """An instrument becomes private, or published here: then the lines are arranged once its streams stand where they should."""
        cdef int index
        cdef fh_stream *stream
        slot.private = slot.quiet = private
        slot.owned = not private
        slot.silent_until = slot.foreign = slot.reset_due = 0
        for index in range(CHANNEL_MAX):
            stream = &slot.stream[index]
            stream.watched = private or (slot.backed and index == FH_CHANNEL_QUOTE)
            stream.told_id = stream.feeder = 0
            if private:
                arrange(stream)

    cdef fh_state_row *row_of(self, fh_slot *slot) noexcept nogil:
        """The row in `state`; NULL where there is none."""
        if self.state.file == NULL or slot.instrument >= self.state.row_max:
            return NULL
        return &(<fh_state_row *>self.state.rows)[slot.instrument]

    def ready(self, instrument_id, uint64_t now_ns=0):
        """How far back a private instrument goes: {"channels": {channel: {"floor", "seen", "last_ns"}}, "book": whether it has a
        live book}. floor: highest sequence (or event time, where there is none) that is not held any more, or else the first one
        held: its owner has to have published that much before it lets go. 0: nothing came yet. A time that we began inside has to be over,
        or LINE_QUIET_NS old."""
        cdef fh_slot *slot = self.slot_at(instrument_id)
        cdef fh_stream *stream
        cdef int index
        cdef bint over
        now_ns = now_ns or clock_now(CLOCK_REALTIME)
        channels = {}
        for index in range(CHANNEL_MAX):
            stream = &slot.stream[index]
            if stream.lines:
                over = stream.ts_ns == stream.floor and elapsed(stream.last_ns, now_ns) > LINE_QUIET_NS
                inside = stream.floor_first and stream.sequence == 0 and stream.ts_ns and not over
                channels[CHANNELS[index]] = {"floor": stream.floor + (1 if inside else 0), "seen": not stream.first_pending, "last_ns": stream.last_ns}
        return {"channels": channels, "book": slot.book_state == BOOK_LIVE}

    def backed(self, instrument_id, bint on):
        """Whether a standby elsewhere would follow us: then the row says which quote was the last one."""
        cdef fh_slot *slot = self.slot_at(instrument_id)
        cdef fh_stream *stream = &slot.stream[<int>FH_CHANNEL_QUOTE]
        slot.backed = on
        stream.watched = on or slot.private
        arrange(stream)
        if on and slot.owned:
            self.note_quote(slot, stream.sequence, 0)
        elif slot.owned:
            self.forget_quote(slot)

    def let_go(self, instrument_id, uint32_t to_worker, dict floors):
        """Hand an instrument over: MOVED_OUT, and the row is to_worker's. Answers what take_over() there needs, as plain data; None
        while something that to_worker does not hold (floors: {channel: sequence or time}) is not published: ask again.

        From here on the instrument is private, with the same book and lines, so that it can be taken back."""
        cdef fh_slot *slot = self.slot_at(instrument_id)
        cdef fh_state_row *row = self.row_of(slot)
        cdef fh_stream *stream
        cdef uint64_t sequence = 0
        cdef int index
        if slot.private:
            return self.handovers.get(instrument_id)
        if not has_lines(slot):
            raise ValueError(f"instrument {instrument_id} has no stream here to let go of")
        if slot.silent_until:
            return None
        for channel, floor in floors.items():
            index = channel_index(channel)
            if published(slot, index) < floor:
                return None
        for index in range(CHANNEL_MAX):
            sequence = max(sequence, slot.stream[index].sequence)
        if slot.chain.last:
            sequence = slot.chain.last
        slot.changed = slot.sequence
        self.put_status(slot.instrument, FH_MOVED_OUT, slot.chain.last != 0, sequence, to_worker,
                        slot.stream[<int>FH_CHANNEL_QUOTE].sequence, 0, clock_now(CLOCK_REALTIME))
        self.touch_row(slot)
        handover = {"instrument": instrument_id, "worker": self.worker, "position": self.writer.position, "sequence": sequence,
                    "price_exponent": slot.l1.price_exponent, "size_exponent": slot.l1.size_exponent,
                    "streams": self.handed_streams(slot), "book": self.handed_book(slot)}
        self.turn()
        if row != NULL:
            fh_state_hand_over(row, to_worker)
        for index in range(CHANNEL_MAX):
            stream = &slot.stream[index]
            stream.floor, stream.floor_open = published(slot, index), 0
            if stream.floor == UINT64_MAX:      # a book that nobody can go on from
                stream.floor, stream.floor_open = 0, 1
        self.turned(slot, True)
        self.handovers[instrument_id] = handover
        return handover

    cdef dict handed_streams(self, fh_slot *slot):
        """What is published of each stream, for the arbitration of who follows."""
        cdef fh_stream *stream
        cdef int index
        found = {}
        for index in range(CHANNEL_MAX):
            stream = &slot.stream[index]
            if stream.lines:
                found[CHANNELS[index]] = {"sequence": stream.sequence, "seen": stream.seen, "ts_event_ns": stream.ts_ns,
                                          "nth": stream.nth, "gap_before": bool(stream.gap_before)}
        return found

    cdef object handed_book(self, fh_slot *slot):
        """The book as it is published; None where none is kept. Levels ascend in goodness, as (price, size) pairs of int64."""
        cdef fh_book *book = &slot.book
        if slot.book_state == BOOK_NONE:
            return None
        return {"last": slot.sequence, "state": (<char *>&slot.chain)[:sizeof(fh_chain)], "ts_event_ns": slot.book_ts_event_ns,
                "depth": slot.depth, "seed": slot.seed, "live": slot.book_state == BOOK_LIVE, "gap": slot.l1.status == FH_GAP,
                "foreign": bool(slot.foreign), "chained": bool(slot.chained), "touch": [slot.touch[i] for i in range(4)],
                "bids": (<char *>book.bid.level)[:book.bid.count * sizeof(fh_level)],
                "asks": (<char *>book.ask.level)[:book.ask.count * sizeof(fh_level)]}

    def take_over(self, Venue venue not None, instrument_id, uint32_t from_worker, handover, blind=()):
        """Publish a private instrument from here on: MOVED_IN, then what is held behind the hand-over, in order.

        blind: channels that nothing came of here and that are not just quiet. handover: the answer of let_go(), or of handover.scan() where the owner died, or None: nothing is known of what it published.
        Answers the book's state after it: "LIVE", "GAP" (it cannot go on exactly; NOTICE_GAP asks for a resync) or "NONE"."""
        cdef fh_slot *slot = self.slot_at(instrument_id)
        cdef int index
        cdef uint64_t now = clock_now(CLOCK_REALTIME), source, position
        cdef bint changed, own
        if not has_lines(slot):
            raise ValueError(f"instrument {instrument_id} has no stream here to take over")
        if not slot.private:
            return shown(slot)
        known = handover or {}
        old_price, old_size = known.get("price_exponent"), known.get("size_exponent")
        if old_price is None:
            old_price, old_size = venue.rows[slot.instrument].price_exponent, venue.rows[slot.instrument].size_exponent
        source, position = known.get("worker", from_worker), known.get("position", 0)
        changed = self.agree(venue, slot, old_price, old_size)
        self.row_taken(venue, slot)
        self.turned(slot, False)
        self.handovers.pop(instrument_id, None)
        book = known.get("book")
        self.put_status(slot.instrument, FH_MOVED_IN, book is not None and book["last"] != 0, known.get("sequence", 0), source,
                        position if source != self.worker else 0, 0, now)
        if changed:
            self.put_status(slot.instrument, FH_INSTRUMENT_CHANGED, 0, <uint64_t><int64_t>slot.l1.price_exponent,
                            <uint64_t><int64_t>slot.l1.size_exponent, (old_price & 0xff) | (old_size & 0xff) << 8, 0, now)
        for index in range(CHANNEL_MAX):
            if slot.stream[index].lines and index != FH_CHANNEL_BOOK:
                if slot.stream[index].floor_open == 2 or CHANNELS[index] in blind:      # nothing came since: what is missing nobody knows
                    self.stream_gap(slot, index)
                if "kinds" in known:
                    self.stream_scanned(slot, index, known)
                else:
                    self.stream_over(slot, index, known)
        slot.reset_due = changed
        own = self.book_over(venue, slot, book, old_price - slot.l1.price_exponent, old_size - slot.l1.size_exponent)
        self.replay(venue, slot, own)
        for index in range(CHANNEL_MAX):
            arrange(&slot.stream[index])
        if slot.backed:
            self.note_quote(slot, slot.stream[<int>FH_CHANNEL_QUOTE].sequence, 0)
        self.touch_row(slot)
        self.turn()
        return shown(slot)

    cdef bint agree(self, Venue venue, fh_slot *slot, int price_exponent, int size_exponent) except -1:
        """Bring our exponents to the finer of them and these. True if these were not the finer ones: readers have to be told."""
        cdef fh_instrument *row = &venue.rows[slot.instrument]
        cdef int price = min(price_exponent, <int>row.price_exponent), size = min(size_exponent, <int>row.size_exponent)
        if price != row.price_exponent or size != row.size_exponent:
            if not self.rescale(slot, row.price_exponent - price, row.size_exponent - size):
                raise ValueError(f"instrument {slot.instrument}: a value held here does not fit exponents {price} and {size}")
            row.price_exponent = slot.l1.price_exponent = <int8_t>price
            row.size_exponent = slot.l1.size_exponent = <int8_t>size
            self.notice(slot, 0, NOTICE_EXPONENT)
        return price != price_exponent or size != size_exponent

    cdef void row_taken(self, Venue venue, fh_slot *slot) noexcept:
        """The row becomes ours, with the last values its old owner left in it, at our exponents."""
        cdef fh_state_row *row = self.row_of(slot)
        cdef fh_state_l1 l1
        cdef fh_instrument *listed = &venue.rows[slot.instrument]
        if row == NULL:
            return
        if fh_state_read_l1(row, &l1) == FH_FEED_OK:
            if not l1_rescale(&l1, l1.price_exponent - listed.price_exponent, l1.size_exponent - listed.size_exponent, True):
                undefine(&l1)
            l1.price_exponent, l1.size_exponent = listed.price_exponent, listed.size_exponent
            l1.flags &= ~FH_STALE
            slot.l1 = l1
        self.forget_quote(slot)
        fh_state_hand_over(row, self.worker)

    cdef stream_over(self, fh_slot *slot, int index, dict handover):
        """A stream stands where its old owner says; what we hold above that is to be published."""
        cdef fh_stream *stream = &slot.stream[index]
        cdef uint64_t floor = stream.floor
        told = handover.get("streams", {}).get(CHANNELS[index])
        stream.sequence = stream.seen = stream.ts_ns = stream.frame = 0
        stream.nth = 0
        if told is not None:
            stream.sequence, stream.seen = told["sequence"], told["seen"]
            stream.ts_ns, stream.nth, stream.gap_before = told["ts_event_ns"], told["nth"], told["gap_before"]
        if (told is not None or not handover) and floor > published(slot, index):
            self.stream_gap(slot, index)

    cdef stream_scanned(self, fh_slot *slot, int index, dict handover):
        """The same from what a dead owner left in its ring: trades by their ids, quotes by what the row says, the rest by time."""
        cdef fh_stream *stream = &slot.stream[index]
        cdef uint32_t kinds = stream.kinds or KINDS[index]
        cdef uint64_t ts_ns = 0
        cdef uint32_t nth = 0
        told = [handover["kinds"][str(kind)] for kind in range(FH_STATUS) if kinds >> kind & 1 and str(kind) in handover["kinds"]]
        if index == FH_CHANNEL_TRADE or index == FH_CHANNEL_AGG_TRADE:
            stream.sequence = stream.seen = stream.frame = 0
            for one in told:
                if "id" in one and one["id"] > stream.told_id:
                    stream.told_id, stream.told_seen, stream.gap_before = one["id"], one["seen"], one["gap_before"]
            stream.watched = 1
            if stream.told_id and stream.floor_id > stream.told_id + stream.floor_first:
                self.stream_gap(slot, index)
            return
        sequence = handover["streams"].get("quote", {}).get("sequence")
        if index == FH_CHANNEL_QUOTE and (sequence or stream.sequence):
            stream.sequence, stream.frame, stream.seen = stream.sequence if sequence is None else sequence, 0, 1
            return
        for one in told:
            if one["ts_event_ns"] > ts_ns:
                ts_ns, nth = one["ts_event_ns"], 0
            if one["ts_event_ns"] == ts_ns:
                nth += one["nth"]
        stream.ts_ns, stream.nth = ts_ns, nth
        if not told and not stream.floor_first:     # nothing in the ring: at least what we let go of is older than that
            stream.ts_ns, stream.nth = stream.floor, 0xffff

    cdef void stream_gap(self, fh_slot *slot, int index):
        """What was published before and what we hold do not meet."""
        cdef fh_stream *stream = &slot.stream[index]
        if index in (FH_CHANNEL_TRADE, FH_CHANNEL_AGG_TRADE, FH_CHANNEL_LIQUIDATION) and not stream.gap_before:
            stream.gap_before = 1
            stream.gaps += 1
            self.put_status(slot.instrument, FH_GAP, index, 0, 0, 0, 0, clock_now(CLOCK_REALTIME))

    cdef bint book_over(self, Venue venue, fh_slot *slot, book, int price_power, int size_power) except -1:
        """The book stands where its old owner left it: with its levels, or with ours that follow silently up to there. Else ours is
        published whole; without one it is a gap. True: what is held goes on from our own levels."""
        cdef bint ours = slot.book_state == BOOK_LIVE, live = book is not None and book["live"]
        cdef uint64_t last = book["last"] if live else 0, now = clock_now(CLOCK_REALTIME)
        if slot.book_state == BOOK_NONE:
            return False
        slot.l1.status = FH_LIVE if live else FH_GAP if book is not None and book["gap"] else 0
        if last and "bids" in book:
            self.book_load(slot, book, price_power, size_power)
            if slot.reset_due:
                self.put_book(slot, 0, slot.book_session, now)
                self.put_touch(slot, True, slot.book_session, now)
            slot.reset_due = 0
            return False
        if last and (ours or slot.seed == SEED_WINDOW) and slot.changed <= last:
            slot.book_state = BOOK_LIVE
            slot.chain.last = max(slot.chain.last, last) if slot.seed == SEED_WINDOW else slot.chain.last
            slot.silent_until, slot.quiet, slot.foreign = last, 1, slot.seed == SEED_REST
            slot.touch_due = book["whole"] and not book["touch_told"]
            slot.stream[<int>FH_CHANNEL_BOOK].watched = 1
            for i in range(4):
                slot.touch[i] = book["touch"][i]
            scale(&slot.touch[0], price_power)
            scale(&slot.touch[1], size_power)
            scale(&slot.touch[2], price_power)
            scale(&slot.touch[3], size_power)
            if slot.sequence >= last:
                self.silent_end(slot, slot.book_session, now)
            return True
        slot.reset_due = 0
        if ours:
            if last:        # ours is beyond it already
                slot.stream[<int>FH_CHANNEL_BOOK].gaps += 1
                self.put_status(slot.instrument, FH_GAP, FH_CHANNEL_BOOK, last + 1, slot.sequence, 0, slot.book_session, now)
            self.advance(slot)
            slot.book_state = BOOK_LIVE if live and not last else BOOK_WAITING
            self.live(slot, slot.book_session, now, self.put_book(slot, 0, slot.book_session, now))
            return True
        self.fifo_drop(slot, FH_CHANNEL_BOOK)
        if live or slot.l1.status == FH_GAP:
            self.broken(slot, last + 1, 0, slot.book_session, now, True)
        return False

    cdef book_load(self, fh_slot *slot, dict book, int price_power, int size_power):
        """The levels and the place in the chain of a hand-over."""
        cdef bytes bids = book["bids"], asks = book["asks"], chain = book["state"]
        cdef uint32_t room = slot.book.bid.max * sizeof(fh_level)
        if len(bids) > room or len(asks) > room or len(chain) != sizeof(fh_chain):
            raise ValueError(f"instrument {slot.instrument}: a hand-over of {len(bids)} and {len(asks)} bytes of levels does not fit "
                             f"a book of {slot.book.bid.max}: give all workers the same number of levels")
        fh_book_clear(&slot.book)
        memcpy(slot.book.bid.level, <char *>bids, len(bids))
        memcpy(slot.book.ask.level, <char *>asks, len(asks))
        memcpy(&slot.chain, <char *>chain, sizeof(fh_chain))
        slot.book.bid.count, slot.book.ask.count = len(bids) // sizeof(fh_level), len(asks) // sizeof(fh_level)
        if not fh_book_rescale(&slot.book, price_power, size_power):
            raise ValueError(f"instrument {slot.instrument}: a handed-over level does not fit our exponents")
        slot.sequence, slot.book_ts_event_ns, slot.foreign = book["last"], book["ts_event_ns"], book["foreign"]
        slot.depth, slot.chained = book["depth"], book["chained"]
        slot.book_state = BOOK_LIVE
        for i in range(4):
            slot.touch[i] = book["touch"][i]
            scale(&slot.touch[i], size_power if i & 1 else price_power)
        slot.book_dirty = 1
        self.notice(slot, FH_CHANNEL_BOOK, NOTICE_LIVE)

    cdef void advance(self, fh_slot *slot) noexcept:
        """Bring a private book to the newest of what is held, without records."""
        cdef uint32_t left = slot.fifo.count, index
        cdef fh_queue kept
        kept.first = kept.last = kept.count = 0
        while left:
            left -= 1
            index = self.pop(&slot.fifo)
            if self.pending[index].event.kind != FH_LEVEL:
                append(self.pending, &kept, index)
                continue
            append(self.pending, &slot.fifo, index)     # evict() takes the first: bring it there
            while slot.fifo.first != index:
                append(self.pending, &slot.fifo, self.pop(&slot.fifo))
            self.evict(slot, False)
        slot.fifo = kept

    cdef void replay(self, Venue venue, fh_slot *slot, bint own) noexcept:
        """Publish what was held in private and is not published yet, in the order of its arrival."""
        cdef uint64_t frame = self.frame_count
        cdef uint32_t index
        cdef fh_event *event
        cdef fh_stream *stream
        cdef bint fresh = False
        while slot.fifo.count:
            index = self.pop(&slot.fifo)
            self.unage(index)
            event = &self.pending[index].event
            stream = &slot.stream[event.channel]
            if event.kind == FH_LEVEL:
                self.replay_book(venue, slot, index, own)
            elif event.sequence:
                self.frame_count = self.pending[index].frame
                fresh = self.arrived(stream, event) and not told(stream, event)
                self.frame_count = frame
            elif stream.sequence == 0:
                fresh = event.ts_event_ns and timed_ahead(stream, self.pending[index].session, event.ts_event_ns, self.pending[index].nth)
            if event.kind != FH_LEVEL and fresh:
                self.pass_on(slot, stream, event, self.pending[index].session, self.pending[index].ts_recv_ns)
            elif event.kind != FH_LEVEL and event.ts_event_ns >= slot.l1.ts_event_ns:
                remember(slot, event)       # the row may be a batch behind what a dead owner published
            self.give(index)

    cdef void replay_book(self, Venue venue, fh_slot *slot, uint32_t index, bint own) noexcept:
        """A book message that was held: behind our own levels by its number alone, for it is chained already; else by the chain."""
        cdef fh_pending *held = &self.pending[index]
        cdef fh_chain chain = slot.chain
        cdef uint64_t last = held.event.body.book.last
        cdef int verdict = FH_VERDICT_APPLY if last > slot.sequence else FH_VERDICT_OLD
        if slot.book_state != BOOK_LIVE:
            return
        if not own and not held.event.body.book.window:
            if last and last <= slot.chain.last:
                return          # the old owner had it: nothing for the chain to count, however many there are
            verdict = venue.chain(&chain, &held.event)
            slot.chain = chain
        if verdict == FH_VERDICT_APPLY and held.event.body.book.window:
            self.book_whole(venue, slot, &held.event, self.recall(index), held.session, held.ts_recv_ns)
        elif verdict == FH_VERDICT_APPLY:
            self.book_change(venue, slot, &held.event, self.recall(index), held.session, held.ts_recv_ns)
        elif verdict != FH_VERDICT_OLD:
            self.broken(slot, slot.sequence, held.event.body.book.prev if held.event.body.book.has_prev
                        else held.event.body.book.first, held.session, held.ts_recv_ns, True)

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

    def load(self, instrument_id, channel):
        """(records published of a stream so far, (messages within 10 ms, 100 ms and 1 s, 99th percentile over the messages)).

        Within 25 %. What was counted before weighs half as much after each call."""
        cdef fh_stream *stream = &self.slot_at(instrument_id).stream[channel_index(channel)]
        cdef int i, bucket
        if stream.load == NULL:
            return 0, (0, 0, 0)
        loaded(stream.load, clock_now(CLOCK_REALTIME), 0)
        found = []
        for i in range(3):
            found.append(percentile_99(stream.load.bucket[i]))
            for bucket in range(LOAD_BUCKETS):
                stream.load.bucket[i][bucket] -= stream.load.bucket[i][bucket] // 2
        return stream.records, tuple(found)

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
                "levels": [slot.book.bid.count, slot.book.ask.count], "held": book_held(slot)}

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

cdef inline void paced(fh_stream *stream, uint16_t session, uint64_t ts_ns) noexcept nogil:
    """Note the time of a published event without a number: its place is that time, and how many of it came."""
    stream.feeder = <uint32_t>session + 1
    if ts_ns > stream.ts_ns:
        stream.ts_ns, stream.nth = ts_ns, 1
    elif ts_ns == stream.ts_ns:
        stream.nth += 1


cdef inline int load_bucket(uint32_t count) noexcept nogil:
    """Bucket of a number of messages: by its power of two and its next two bits."""
    cdef int power = 31 - __builtin_clz(count | 1)
    return min(4 * power + <int>((count << 2 >> power) & 3), LOAD_BUCKETS - 1)


cdef inline void close_window(fh_load *load, int i) noexcept nogil:
    load.bucket[i][load_bucket(load.count[i])] += load.count[i]
    if i < 2:
        load.count[i + 1] += load.count[i]
    load.count[i] = 0


cdef inline void loaded(fh_load *load, uint64_t ts_recv_ns, uint32_t messages) noexcept nogil:
    """Count messages into the window of 10 ms that is now; what is over is closed, and counts in the longer one around it."""
    cdef uint64_t window = ts_recv_ns // LOAD_WINDOW_NS
    if window != load.window:
        close_window(load, 0)
        if window // 10 != load.window // 10:
            close_window(load, 1)
            if window // 100 != load.window // 100:
                close_window(load, 2)
        load.window = window
    load.count[0] += messages


cdef uint64_t percentile_99(const uint32_t *bucket) noexcept nogil:
    """The number of messages that 99 in 100 messages had at most in their window: upper edge of its bucket."""
    cdef uint64_t total = 0, below = 0
    cdef int i, power
    for i in range(LOAD_BUCKETS):
        total += bucket[i]
    for i in range(LOAD_BUCKETS):
        below += bucket[i]
        if below and 100 * below >= 99 * total:
            power = i >> 2
            return ((<uint64_t>5 + (i & 3)) << power >> 2) - (power >= 2) if power else 1
    return 0


cdef fh_line *line_of(fh_stream *stream, uint16_t session) noexcept nogil:
    cdef int i
    for i in range(stream.line_count):
        if stream.line[i].session == session:
            return &stream.line[i]
    return NULL


cdef int met_count(fh_stream *stream) noexcept nogil:
    cdef int i, count = 0
    for i in range(stream.line_count):
        count += stream.line[i].state == LINE_MET
    return count


cdef int active_count(fh_stream *stream) noexcept nogil:
    """Lines that were not dropped."""
    cdef int i, count = 0
    for i in range(stream.line_count):
        count += stream.line[i].state != LINE_DROPPED
    return count


cdef bint unstuck(fh_stream *stream, const fh_line *but) noexcept nogil:
    """Whether another line has met the book and waits for nothing: it may still bring what this one misses."""
    cdef int i
    for i in range(stream.line_count):
        if &stream.line[i] != but and stream.line[i].state == LINE_MET and stream.line[i].held.count == 0:
            return True
    return False


cdef void arrange(fh_stream *stream) noexcept nogil:
    """Whether one line feeds the stream and nobody else counts, and it is not behind: its events go the short way then. A line
    that was alone stands where the stream stands."""
    cdef fh_line *line = &stream.line[0]
    cdef uint32_t usual = 0
    cdef int i
    for i in range(stream.line_count):
        if stream.usual == <uint32_t>stream.line[i].session + 1:
            stream.line[i].ts_ns, stream.line[i].nth, stream.line[i].exact = stream.ts_ns, stream.nth, 1
            stream.line[i].fate = FATE_PUBLISH
        if stream.line[i].state != LINE_DROPPED:
            line = &stream.line[i]
    if active_count(stream) == 1 and line.state == LINE_MET and line.held.count == 0 and not stream.watched and not (
            stream.sequence == 0 and (line.ts_ns < stream.ts_ns or (line.ts_ns == stream.ts_ns and line.nth < stream.nth))):
        usual = <uint32_t>line.session + 1
    stream.usual = usual


cdef inline int timed_ahead(fh_stream *stream, uint16_t session, uint64_t ts_ns, uint32_t nth) noexcept nogil:
    """FATE_PUBLISH where the nth event of this time is not published yet; it is from now on."""
    if ts_ns < stream.ts_ns or (ts_ns == stream.ts_ns and nth <= stream.nth):
        return FATE_DUPLICATE
    stream.ts_ns, stream.nth, stream.feeder = ts_ns, nth, <uint32_t>session + 1
    return FATE_PUBLISH


cdef int timed_fate(fh_stream *stream, fh_line *line, uint64_t ts_ns) noexcept nogil:
    """What becomes of an event without a number: its place is its time, and the how-manieth of that time it is on its line.

    A line that begins inside a time cannot count its events until the next one; it has met the stream once that time is over.
    Without a time one line alone feeds the stream. A time that goes back is believed of the line that fed it last."""
    cdef bint feeds = stream.feeder == 0 or stream.feeder == <uint32_t>line.session + 1
    if ts_ns == 0:
        line.state = LINE_MET
        if feeds:
            stream.feeder = <uint32_t>line.session + 1
        return FATE_PUBLISH if feeds else FATE_DUPLICATE
    if ts_ns < line.ts_ns:
        return FATE_PUBLISH if feeds and line.state == LINE_MET else FATE_DUPLICATE
    if ts_ns == line.ts_ns:
        line.nth += 1
    else:
        line.exact |= line.first != 0
        line.ts_ns, line.nth = ts_ns, 1
    if line.first == 0:
        line.first, line.timed = ts_ns + 1, 1
    if line.state == LINE_JOINING and line.first <= stream.ts_ns:
        line.state = LINE_MET
    if not line.exact:
        return FATE_DUPLICATE
    return timed_ahead(stream, line.session, ts_ns, line.nth) if line.state == LINE_MET else FATE_HOLD


cdef inline bint chains(const fh_event *event) noexcept nogil:
    """Whether a message is a numbered change, which the venue's chain puts in its place."""
    return event.kind == FH_LEVEL and event.body.book.last != 0 and not event.body.book.window and not event.flags & FH_SNAPSHOT


cdef inline bint reached(const fh_slot *slot, const fh_stream *stream, const fh_line *line) noexcept nogil:
    """Whether what a joining line brought first is published by now."""
    cdef uint64_t published = stream.ts_ns if line.timed else stream.sequence
    if stream == &slot.stream[<int>FH_CHANNEL_BOOK] and not line.timed:
        published = slot.chain.last
    return line.first != 0 and line.first <= published


cdef bint same_book(const fh_book *book, const fh_change *changes, uint32_t count) noexcept nogil:
    """Whether a snapshot, best first, holds exactly these levels."""
    cdef uint32_t bids = book.bid.count, i
    cdef const fh_level *level
    if count != bids + book.ask.count:
        return False
    for i in range(count):
        level = &book.bid.level[bids - 1 - i] if i < bids else &book.ask.level[count - 1 - i]
        if changes[i].side != (FH_BID if i < bids else FH_ASK) or changes[i].price != level.price or changes[i].size != level.size:
            return False
    return True


cdef inline void append(fh_pending *pending, fh_queue *queue, uint32_t index) noexcept nogil:
    if queue.count:
        pending[queue.last].next = index
    else:
        queue.first = index
    queue.last = index
    queue.count += 1


cdef uint64_t published(const fh_slot *slot, int index) noexcept nogil:
    """How far a stream is published: by sequence, else by time. Of a book that nobody can go on from, all there is."""
    cdef const fh_stream *stream = &slot.stream[index]
    if index != FH_CHANNEL_BOOK:
        return stream.sequence or stream.ts_ns
    return slot.sequence if slot.book_state == BOOK_LIVE and slot.sequence else UINT64_MAX


cdef str shown(const fh_slot *slot):
    """State of a book after a hand-over."""
    return "LIVE" if slot.book_state == BOOK_LIVE else "NONE" if slot.book_state == BOOK_NONE else "GAP"


cdef inline uint64_t number_of(const fh_event *event) noexcept nogil:
    """What a private event is numbered by: its sequence, else its time."""
    return event.body.book.last if event.kind == FH_LEVEL and event.body.book.last else event.sequence or event.ts_event_ns


cdef inline void raise_floor(fh_stream *stream, const fh_event *event) noexcept nogil:
    stream.floor = max(stream.floor, number_of(event))
    stream.floor_first = 0
    if event.kind == FH_TRADE:
        stream.floor_id = max(stream.floor_id, <uint64_t>event.body.word[2])


cdef inline int kind_of(const fh_event *event) noexcept nogil:
    """The kind of an event's record; an aggregated trade, which is a stream of its own at some venues, as KIND_AGGREGATE."""
    return KIND_AGGREGATE if event.kind == FH_TRADE and event.body.word[3] >> 8 & 0xff else event.kind


cdef inline bint told(fh_stream *stream, const fh_event *event) noexcept nogil:
    """Whether a dead owner published this trade. Once we are past what it published, nobody asks any more."""
    cdef uint64_t identity = <uint64_t>event.body.word[2]
    if stream.told_id == 0 or event.kind != FH_TRADE:
        return False
    if identity > stream.told_id:
        stream.told_id = stream.watched = 0
        return False
    return stream.told_id - identity >= SEEN_BITS or stream.told_seen >> (stream.told_id - identity) & 1


cdef uint32_t book_held(const fh_slot *slot) noexcept nogil:
    """Messages that the lines of a book hold."""
    cdef const fh_stream *stream = &slot.stream[<int>FH_CHANNEL_BOOK]
    cdef uint32_t count = 0
    cdef int i
    for i in range(stream.line_count):
        count += stream.line[i].held.count
    return count


cdef bint has_lines(fh_slot *slot) noexcept nogil:
    cdef int index
    for index in range(CHANNEL_MAX):
        if slot.stream[index].lines:
            return True
    return False


cdef inline void lag_seen(fh_session_row *row, int64_t lag_ns) noexcept nogil:
    """One event of a session that came so late. Kinds whose event time is when a period began are not asked."""
    row.lag_sum_ns += lag_ns
    row.lag_count += 1
    row.lag_min_ns = min(row.lag_min_ns, lag_ns)


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
            if not slot.late:
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


cdef bint l1_rescale(fh_state_l1 *l1, int price_power, int size_power, bint apply) noexcept nogil:
    """Bring last values to new exponents. Without apply only: whether they fit."""
    cdef int64_t *prices[7]
    cdef int64_t *sizes[6]
    cdef int i
    prices[0], prices[1], prices[2], prices[3] = &l1.bid_price, &l1.ask_price, &l1.quote_bid_price, &l1.quote_ask_price
    prices[4], prices[5], prices[6] = &l1.trade_price, &l1.mark_price, &l1.index_price
    sizes[0], sizes[1], sizes[2], sizes[3] = &l1.bid_size, &l1.ask_size, &l1.quote_bid_size, &l1.quote_ask_size
    sizes[4], sizes[5] = &l1.trade_size, &l1.open_interest
    for i in range(7):
        if not fits(prices[i][0], price_power):
            return False
    for i in range(6):
        if not fits(sizes[i][0], size_power):
            return False
    for i in range(7 if apply else 0):
        scale(prices[i], price_power)
    for i in range(6 if apply else 0):
        scale(sizes[i], size_power)
    return True


cdef bint plain_rescale(fh_event *event, int price_power, int size_power) noexcept nogil:
    """Bring the mantissas of an event to new exponents. False if one does not fit; the event is of no use then."""
    cdef uint32_t prices = 0, sizes = 0     # words that are one or the other
    cdef int i
    if event.kind == FH_TRADE or event.kind == FH_LIQUIDATION:
        prices, sizes = 1, 2
    elif event.kind == FH_QUOTE:
        prices, sizes = 5, 10
    elif event.kind == FH_MARK or event.kind == FH_INDEX:
        prices = 1
    elif event.kind == FH_OPEN_INTEREST:
        prices, sizes = 2, 1
    elif event.kind == FH_CANDLE or event.kind == FH_TICKER:
        prices, sizes = 15, 16
    for i in range(5):
        if (prices >> i & 1 and not fits(event.body.word[i], price_power)) or (sizes >> i & 1 and not fits(event.body.word[i], size_power)):
            return False
        scale(&event.body.word[i], price_power if prices >> i & 1 else size_power if sizes >> i & 1 else 0)
    return True


cdef bint queue_rescale(Publisher self, const fh_queue *queue, int price_power, int size_power) noexcept nogil:
    """The same of all events of a queue and their changes. False at the first that does not fit: they are to be dropped."""
    cdef uint32_t index = queue.first, run, left, i, n
    cdef fh_change *change
    for n in range(queue.count):
        if self.pending[index].event.kind != FH_LEVEL:
            if not plain_rescale(&self.pending[index].event, price_power, size_power):
                return False
            index = self.pending[index].next
            continue
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


cdef bint held_rescale(Publisher self, fh_slot *slot, int price_power, int size_power) noexcept nogil:
    """The same of all that is held for an instrument."""
    cdef int channel, i
    if not queue_rescale(self, &slot.fifo, price_power, size_power):
        return False
    for channel in range(CHANNEL_MAX):
        for i in range(slot.stream[channel].line_count):
            if not queue_rescale(self, &slot.stream[channel].line[i].held, price_power, size_power):
                return False
    return True


def failed(int answer, name):
    """The error of a file that could not be taken: what the system says, or that it is no file of this build."""
    if answer == FH_ERROR_SYSTEM:
        return OSError(errno_now, f"{os.strerror(errno_now)}: {name}")
    return ValueError(f"{name} was not written by this build of feedhandler, or is damaged: stop the instance and start it again")
