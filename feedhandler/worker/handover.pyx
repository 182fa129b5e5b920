# cython: language_level=3
"""What a worker that died published last of an instrument, read from its ring and from `state` by whoever follows it.

Who writes:   nobody: the ring's writer is dead. Who reads: the worker that takes over, once.
What blocks:  nothing; a ring is walked backwards once, and those that its instruments came from.
After a crash: only whole events count, as for a reader: what has no LAST, and what an EPOCH made void, was not published.
"""
import os

from libc.stdlib cimport calloc, free
from libc.string cimport memcpy
from feedhandler._cext cimport *

cdef enum:
    KIND_COUNT = 14             # kinds of records with a price, and
    KIND_AGGREGATE = 13         # trades that are aggregates: a stream of their own at some venues
    SEEN_BITS = 64              # trade ids below the highest that are told one by one
    HOP_MAX = 16                # rings an instrument is followed back through, move by move
    PATH_MAX = 320
    LOOK_BACK_NS = 4000000000   # what a dead worker published longer ago is no longer held by anybody: twice PRIVATE_HOLD_NS; `state` has its last values

# What was found of one instrument so far. Walking backwards, the first of a kind is the last published.
ctypedef struct fh_found:
    uint64_t until              # only records below this position of the ring at hand are its
    uint64_t position           # behind its last whole event, in the first ring
    uint64_t sequence           # that of the last MOVED_IN
    uint64_t id[14]             # highest trade id,
    uint64_t seen[14]           # and bit n: that minus n was published
    uint64_t ts_ns[14]          # time of the last record of a kind,
    uint32_t nth[14]            # and how many of that time
    uint64_t quote              # that of the last quote, as MOVED_OUT tells it
    uint64_t book_floor         # book sequence of the last MOVED_IN
    uint64_t book_last, book_ts_ns, hop_position
    int64_t touch[4]
    uint32_t levels             # records of the last book message
    uint32_t hop                # worker it came from
    uint32_t to                 # worker for which it may have left this one
    uint16_t kinds              # bit n: a record of kind n was found
    int8_t price_exponent, size_exponent
    uint8_t done, gone, before  # nothing more in this ring; it had left it; the ring at hand is that of an owner before
    uint8_t has_book, gap, whole, has_touch, touch_told, has_exponents, alive, trade_gap, hopped


cdef inline uint64_t closed(uint64_t seen) noexcept nogil:
    """The ids below the lowest of those seen as seen too: what came before, or lies in a gap that was told, is nobody's to bring any more."""
    cdef int bit = 0
    while seen >> bit > 1:
        bit += 1
    return seen | ~<uint64_t>0 << bit if seen else 0


cdef void note_status(fh_found *found, const fh_record *record) noexcept nogil:
    cdef uint32_t code = record.body.status.code
    cdef uint32_t channel = record.body.status.detail
    if code == FH_MOVED_OUT and found.position == 0 and record.body.status.b == found.to:
        found.quote = record.body.status.c
    elif code == FH_MOVED_OUT and found.position == 0:
        found.done = found.gone = 1
    elif code == FH_MOVED_IN:
        found.sequence = max(found.sequence, record.body.status.a)
        if record.body.status.detail:       # messages behind the last level record that changed nothing
            found.book_floor = max(found.book_floor, record.body.status.a)
        found.hop, found.hop_position, found.hopped, found.done = <uint32_t>record.body.status.b, record.body.status.c, 1, 1
    elif code == FH_GAP and channel == FH_CHANNEL_BOOK and not found.has_book:
        found.has_book = found.gap = 1
    elif code == FH_GAP and channel != FH_CHANNEL_BOOK:
        found.trade_gap |= not found.kinds & (1 << FH_TRADE | 1 << KIND_AGGREGATE)
        found.seen[FH_TRADE], found.seen[KIND_AGGREGATE] = closed(found.seen[FH_TRADE]), closed(found.seen[KIND_AGGREGATE])
    elif code == FH_LIVE and not found.has_book:
        found.alive = 1
    elif code == FH_INSTRUMENT_CHANGED and not found.has_exponents:
        found.has_exponents = 1
        found.price_exponent, found.size_exponent = <int8_t>record.body.status.a, <int8_t>record.body.status.b


cdef void note_plain(fh_found *found, const fh_record *record) noexcept nogil:
    """A record that is an event of its own, by the id of a trade and by the time of all."""
    cdef int kind = record.kind
    cdef uint64_t identity = <uint64_t>record.body.word[2]
    if kind == FH_TRADE and record.body.word[3] >> 8 & 0xff:
        kind = KIND_AGGREGATE
    if not found.kinds >> kind & 1:
        found.kinds |= 1 << kind
        found.id[kind], found.seen[kind], found.ts_ns[kind], found.nth[kind] = identity, 1, record.ts_event_ns, 1
        return
    found.nth[kind] += record.ts_event_ns == found.ts_ns[kind]
    if identity > found.id[kind]:
        found.seen[kind] = found.seen[kind] << (identity - found.id[kind]) if identity - found.id[kind] < SEEN_BITS else 0
        found.id[kind] = identity
    if found.id[kind] - identity < SEEN_BITS:
        found.seen[kind] |= <uint64_t>1 << (found.id[kind] - identity)


cdef void note(fh_found *found, const fh_record *record, uint64_t position) noexcept nogil:
    """One record of a whole event of the instrument, the latest first."""
    if record.kind == FH_STATUS:
        note_status(found, record)
    elif record.kind == FH_LEVEL:
        if not found.has_book:
            found.has_book, found.book_last, found.book_ts_ns = 1, record.body.level.sequence, record.ts_event_ns
            found.whole = record.flags & FH_SNAPSHOT != 0
        found.levels += not found.gap and record.body.level.sequence == found.book_last
    elif record.kind == FH_TOUCH:
        if not found.has_touch:
            memcpy(found.touch, record.body.word, sizeof(found.touch))
            found.has_touch, found.touch_told = 1, not found.has_book
    elif 0 < record.kind < KIND_COUNT - 1:
        note_plain(found, record)
    if not found.before:
        found.position = max(found.position, position + 1)


cdef void walk(const fh_ring_reader *ring, uint64_t end, fh_found *found, const uint32_t *index, uint32_t index_max) noexcept nogil:
    """Note every record of whole events below end and not older than LOOK_BACK_NS, backwards. index[id] - 1: where found[] has an
    instrument; 0: nowhere."""
    cdef uint64_t position = end, first = end - ring.slot_count if end > ring.slot_count else 0
    cdef const fh_record *record
    cdef fh_found *one
    cdef uint64_t newest_ns = 0
    cdef bint whole = False
    cdef int there = 0
    while position > first:
        position -= 1
        record = fh_ring_peek(ring, position, &there)
        if not there:
            return      # older than the ring
        if record.kind != FH_STATUS and whole:
            newest_ns = max(newest_ns, record.ts_recv_ns)
            if record.ts_recv_ns + <uint64_t>LOOK_BACK_NS < newest_ns:
                return
        if record.flags & FH_LAST:
            whole = True
        if fh_ring_is(record, FH_EPOCH):
            whole = False       # its writer died before it: what has no LAST there is void
        if not whole or record.instrument >= index_max or index[record.instrument] == 0:
            continue
        one = &found[index[record.instrument] - 1]
        if not one.done and position < one.until:
            note(one, record, position)


cdef uint64_t end_of(const fh_ring_reader *ring) noexcept nogil:
    """The first position from head on that was not committed: there the writer stopped."""
    cdef uint64_t position = ring.ring.head, claim = ring.ring.claim
    cdef int there = 1
    while position < claim:
        fh_ring_peek(ring, position, &there)
        if not there:
            break
        position += 1
    return position


cdef class Rings:
    """The rings of an instance, mapped while a scan lasts."""
    cdef fh_ring_reader ring[256]
    cdef str directory

    def __init__(self, directory):
        self.directory = os.fspath(directory)

    def __dealloc__(self):
        cdef int i
        for i in range(256):
            fh_ring_unmap(&self.ring[i])

    cdef fh_ring_reader *of(self, uint32_t worker) except NULL:
        cdef char error[400]
        cdef bytes path = f"{self.directory}/worker-{worker}.ring".encode()
        if worker >= <uint32_t>FH_RING_MAX:
            raise ValueError(f"worker {worker} is not one of an instance's {FH_RING_MAX}")
        if self.ring[worker].ring == NULL and fh_ring_map(&self.ring[worker], path, error, sizeof(error)) != FH_FEED_OK:
            raise OSError(error.decode())
        return &self.ring[worker]


def scan(directory, uint32_t worker, instruments, uint32_t to_worker=0xffffffff):
    """What a dead worker published last of these instruments: {instrument: hand-over}, for Publisher.take_over().

    directory: of the instance. An instrument that had left the worker, other than for to_worker, is not in the answer. The hand-over is as let_go() gives it, but has no levels (and no exponents, None,
    where neither ring nor row say any), and beside "streams" it has "kinds", {kind of record: {"id", "seen", "ts_event_ns", "nth", "gap_before"}}, for a
    record does not say on which channel it came. "book": {"last", "live", "gap", "touch", "touch_told", "whole" (it was told
    whole, not as a change), "ts_event_ns"}.
    OSError names a file that is missing."""
    cdef Rings rings = Rings(directory)
    cdef list ids = list(instruments)
    cdef uint32_t index_max = max(ids, default=0) + 1, i
    cdef fh_found *found = <fh_found *>calloc(len(ids) + 1, sizeof(fh_found))
    cdef uint32_t *index = <uint32_t *>calloc(index_max, sizeof(uint32_t))
    cdef fh_table state
    cdef int dir_fd, answer
    if found == NULL or index == NULL:
        raise MemoryError(f"no memory to look for {len(ids)} instruments")
    dir_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        answer = fh_table_open(&state, dir_fd, b"state", FH_MAGIC_STATE, sizeof(fh_state_row))
    finally:
        os.close(dir_fd)
    if answer < 0:
        raise OSError(f"{directory}/state is missing or was not written by this build of feedhandler")
    try:
        for i in range(len(ids)):
            index[<uint32_t>ids[i]] = i + 1
            found[i].until, found[i].to = end_of(rings.of(worker)), to_worker
        walk(rings.of(worker), end_of(rings.of(worker)), found, index, index_max)
        follow(rings, found, ids, index, index_max)
        return {ids[i]: handover(rings, worker, ids[i], &found[i], &state) for i in range(len(ids)) if not found[i].gone}
    finally:
        fh_table_close(&state)
        free(found)
        free(index)


cdef follow(Rings rings, fh_found *found, list ids, uint32_t *index, uint32_t index_max):
    """What an owner did not publish itself is in the ring of the one before it, up to where the instrument left that."""
    cdef uint32_t i
    cdef int hop
    for hop in range(HOP_MAX):
        hops = {}
        for i in range(len(ids)):
            index[<uint32_t>ids[i]] = 0
            if found[i].hopped and not found[i].gone and found[i].hop_position:
                hops.setdefault(found[i].hop, []).append(i)
            found[i].hopped = 0
        if not hops:
            return
        for worker, members in hops.items():
            for i in members:
                index[<uint32_t>ids[i]] = i + 1
                found[i].until, found[i].done, found[i].before = found[i].hop_position, 0, 1
            walk(rings.of(worker), max(found[i].until for i in members), found, index, index_max)
            for i in members:
                index[<uint32_t>ids[i]] = 0


cdef dict handover(Rings rings, uint32_t worker, instrument, fh_found *one, const fh_table *state):
    """The hand-over of what was found; what the ring does not hold any more is in the row."""
    cdef const fh_state_row *row = NULL
    cdef fh_state_l1 l1
    cdef fh_ring_reader *ring = rings.of(worker)
    price_exponent, size_exponent = (one.price_exponent, one.size_exponent) if one.has_exponents else (None, None)
    if instrument < state.row_max:
        row = &(<fh_state_row *>state.rows)[<uint32_t>instrument]
        if fh_state_read_l1(row, &l1) != FH_FEED_OK:
            row = NULL
    if not one.has_exponents and row != NULL:
        price_exponent, size_exponent = l1.price_exponent, l1.size_exponent
    kinds = {}
    for kind in range(1, KIND_COUNT):
        if one.kinds >> kind & 1:
            kinds[str(kind)] = {"ts_event_ns": one.ts_ns[kind], "nth": one.nth[kind]}
            if kind == FH_TRADE or kind == KIND_AGGREGATE:
                kinds[str(kind)].update(id=one.id[kind], seen=closed(one.seen[kind]), gap_before=bool(one.trade_gap))
    if row != NULL and str(FH_TRADE) not in kinds and str(KIND_AGGREGATE) not in kinds and l1.trade_id:
        kinds[str(FH_TRADE)] = {"ts_event_ns": 0, "nth": 0, "id": l1.trade_id, "seen": closed(1), "gap_before": bool(one.trade_gap)}
    streams = {}
    if one.quote:
        streams["quote"] = {"sequence": one.quote}
    elif instrument < state.row_max and (<fh_state_row *>state.rows)[<uint32_t>instrument].owner == worker:
        streams["quote"] = {"sequence": last_quote(ring, &(<fh_state_row *>state.rows)[<uint32_t>instrument])}
    book = book_of(one, row, &l1)
    return {"instrument": instrument, "worker": worker, "position": one.position, "price_exponent": price_exponent,
            "size_exponent": size_exponent, "streams": streams, "kinds": kinds, "book": book,
            "sequence": (book or {}).get("last") or max([one.sequence] + [kind.get("id", 0) for kind in kinds.values()])}


cdef object last_quote(fh_ring_reader *ring, const fh_state_row *row):
    """Sequence of the last quote whose record is whole, as its writer said in the row before it wrote it. None: not known."""
    cdef uint64_t best = 0, position
    cdef int there = 0
    sequence = None
    for i in range(2):
        position = row.quote_position[i]
        if position == 0 or position <= best:
            continue
        fh_ring_peek(ring, position - 1, &there)
        if there or position + ring.slot_count <= ring.ring.claim:
            best, sequence = position, row.quote_sequence[i]
    return sequence


cdef object book_of(fh_found *one, const fh_state_row *row, const fh_state_l1 *l1):
    """Where the published book stands; None: no sign of one."""
    cdef fh_state_book last
    cdef bint gap = one.gap
    if row != NULL and fh_state_read_book(row, &last) == FH_FEED_OK:
        if not one.has_book:
            one.has_book, one.book_last, one.book_ts_ns, gap = 1, last.sequence, last.ts_event_ns, last.flags & FH_STALE
        if not one.has_touch:
            one.touch[0], one.touch[1], one.touch[2], one.touch[3] = l1.bid_price, l1.bid_size, l1.ask_price, l1.ask_size
    if not one.has_book:
        return None
    if one.book_last:
        one.book_last = max(one.book_last, one.book_floor)
    return {"last": one.book_last, "live": not gap, "gap": bool(gap), "touch": [one.touch[i] for i in range(4)],
            "touch_told": bool(one.touch_told), "whole": bool(one.whole), "ts_event_ns": one.book_ts_ns}
