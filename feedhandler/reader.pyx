# cython: language_level=3
"""What a strategy loads: attach to a running instance and read its records and last values.

    import feedhandler
    feed = feedhandler.attach("demo")
    for record in feed:                  # typed records, blocking
        ...
    batch = feed.poll(timeout=1.0)       # numpy view of one ring's new records, no copy

A reader maps everything read-only but its own slot of `readers`; nothing it does can slow a worker down.
It imports neither asyncio nor picows.

Order: records of one instrument are in order, also when it moves between workers. Records of different
workers interleave by arrival at this reader.

Loss: a reader that falls a whole ring behind is told exactly how many records it lost (`feed.lost`,
`batch.lost`), keeps what is still there, and can go on from the last values with `feed.rebase()`.
"""
import decimal
import difflib
import os

import numpy

cimport cython
from cpython.buffer cimport PyBUF_READ
from cpython.exc cimport PyErr_CheckSignals
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.math cimport NAN, isnan
from libc.string cimport memcpy, memset, strerror
from feedhandler._cext cimport *

from feedhandler import instance as _instance

RECORD_DTYPE = numpy.dtype([
    ("position", "<u8"), ("ts_recv_ns", "<u8"), ("ts_event_ns", "<u8"), ("instrument", "<u4"), ("kind", "u1"),
    ("flags", "u1"), ("session", "<u2"), ("word", "<i8", (4,))])
"""One 64-byte slot as the public header lays it out. position is the commit word, ring position + 1."""

_BODY_FIELDS = {  # name: (dtype, offset); several kinds share an offset
    "price": ("<i8", 32), "size": ("<i8", 40), "trade_id": ("<u8", 48), "aggressor": ("u1", 56), "aggregate": ("u1", 57),
    "count": ("<u4", 60), "bid_price": ("<i8", 32), "bid_size": ("<i8", 40), "ask_price": ("<i8", 48), "ask_size": ("<i8", 56),
    "sequence": ("<u8", 48), "side": ("u1", 56), "order_count": ("<u4", 60), "code": ("<u4", 32), "detail": ("<u4", 36)}
_HEAD_FIELDS = {name: RECORD_DTYPE.fields[name] for name in RECORD_DTYPE.names}
FULL_DTYPE = numpy.dtype({
    "names": list(_HEAD_FIELDS) + list(_BODY_FIELDS),
    "formats": [field[0] for field in _HEAD_FIELDS.values()] + [field[0] for field in _BODY_FIELDS.values()],
    "offsets": [field[1] for field in _HEAD_FIELDS.values()] + [field[1] for field in _BODY_FIELDS.values()],
    "itemsize": 64})
"""RECORD_DTYPE and every body field by name; fields of different kinds overlap, as in the C union."""

KINDS = {FH_TRADE: "trade", FH_QUOTE: "quote", FH_TOUCH: "touch", FH_LEVEL: "level", FH_MARK: "mark", FH_INDEX: "index",
         FH_FUNDING: "funding", FH_OPEN_INTEREST: "open_interest", FH_LIQUIDATION: "liquidation", FH_CANDLE: "candle",
         FH_TICKER: "ticker", FH_GREEKS: "greeks", FH_STATUS: "status"}
STATUS_CODES = {FH_GAP: "GAP", FH_RESYNC: "RESYNC", FH_STALE_STREAM: "STALE", FH_LIVE: "LIVE", FH_HALT: "HALT",
                FH_HEARTBEAT: "HEARTBEAT", FH_EPOCH: "EPOCH", FH_SESSION_UP: "SESSION_UP", FH_SESSION_DOWN: "SESSION_DOWN",
                FH_MOVED_OUT: "MOVED_OUT", FH_MOVED_IN: "MOVED_IN", FH_INSTRUMENT_CHANGED: "INSTRUMENT_CHANGED",
                FH_CLOCK: "CLOCK", FH_REJECTED: "REJECTED", FH_WORKER_SILENT: "WORKER_SILENT"}
FLAGS = {FH_LAST: "LAST", FH_SNAPSHOT: "SNAPSHOT", FH_RESET: "RESET", FH_GAP_BEFORE: "GAP_BEFORE", FH_STALE: "STALE",
         FH_INEXACT: "INEXACT", FH_OVERFLOW: "OVERFLOW", FH_TS_SUSPECT: "TS_SUSPECT"}
_SIDES = {FH_SIDE_NONE: None, FH_BID: "bid", FH_ASK: "ask"}
_INSTRUMENT_KINDS = {FH_SPOT: "spot", FH_PERPETUAL: "perpetual", FH_FUTURE: "future", FH_OPTION: "option"}


class FeedError(Exception):
    """What is missing or wrong with an instance's shared memory, and what to do."""


cdef object _decimal(int64_t mantissa, int exponent):
    """mantissa * 10^exponent as an exact Decimal; None for an undefined number."""
    if mantissa == FH_UNDEFINED:
        return None
    return decimal.Decimal(mantissa).scaleb(exponent)


cdef class Record:
    """One record. Prices and sizes are exact Decimals, None where undefined; the raw mantissas are in `words`.

    Attributes: kind (text), instrument (id), ts_recv_ns and ts_event_ns (UTC ns), flags (int), session,
    position (in its ring), ring (worker number), words (tuple of the 4, 8 or 12 body words)."""
    cdef fh_record data
    cdef int64_t more[8]
    cdef readonly int slot_count
    cdef readonly int ring
    cdef int8_t price_exponent, size_exponent

    @property
    def kind(self):
        return KINDS.get(self.data.kind, str(self.data.kind))

    @property
    def position(self):
        return self.data.commit - 1

    @property
    def instrument(self):
        return None if self.data.instrument == FH_INSTRUMENT_NONE else self.data.instrument

    @property
    def ts_recv_ns(self):
        return self.data.ts_recv_ns

    @property
    def ts_event_ns(self):
        return self.data.ts_event_ns

    @property
    def flags(self):
        return self.data.flags

    @property
    def session(self):
        return self.data.session

    @property
    def words(self):
        words = tuple(self.data.body.word[i] for i in range(4))
        return words + tuple(self.more[i] for i in range(4 * (self.slot_count - 1)))

    @property
    def last(self):
        """Whether this record ends its venue event."""
        return bool(self.data.flags & FH_LAST)

    def as_dict(self):
        """Every field by name, decimals as text: what `tail --json` prints."""
        fields = {"kind": self.kind, "instrument": self.instrument, "ts_recv_ns": self.ts_recv_ns,
                  "ts_event_ns": self.ts_event_ns, "ring": self.ring, "position": self.position,
                  "flags": [name for bit, name in FLAGS.items() if self.data.flags & bit]}
        for name in self.FIELDS:
            value = getattr(self, name)
            fields[name] = format(value, "f") if isinstance(value, decimal.Decimal) else value
        return fields

    FIELDS = ()

    def __repr__(self):
        fields = " ".join(f"{name}={getattr(self, name)}" for name in self.FIELDS)
        return f"<{type(self).__name__} instrument={self.instrument} {fields}>"

    cdef object price_at(self, int64_t mantissa):
        return _decimal(mantissa, self.price_exponent)

    cdef object size_at(self, int64_t mantissa):
        return _decimal(mantissa, self.size_exponent)


@cython.freelist(64)
@cython.final
cdef class Trade(Record):
    FIELDS = ("price", "size", "side", "trade_id", "count")

    @property
    def price(self):
        return self.price_at(self.data.body.trade.price)

    @property
    def size(self):
        return self.size_at(self.data.body.trade.size)

    @property
    def side(self):
        """"bid" if the taker bought, "ask" if it sold."""
        return _SIDES[self.data.body.trade.aggressor]

    @property
    def trade_id(self):
        return self.data.body.trade.trade_id

    @property
    def count(self):
        """Fills in this record; above 1 only for aggregate trades."""
        return self.data.body.trade.count

    @property
    def aggregate(self):
        return bool(self.data.body.trade.aggregate)


cdef class _BidAsk(Record):
    FIELDS = ("bid_price", "bid_size", "ask_price", "ask_size")

    @property
    def bid_price(self):
        return self.price_at(self.data.body.quote.bid_price)

    @property
    def bid_size(self):
        return self.size_at(self.data.body.quote.bid_size)

    @property
    def ask_price(self):
        return self.price_at(self.data.body.quote.ask_price)

    @property
    def ask_size(self):
        return self.size_at(self.data.body.quote.ask_size)


@cython.freelist(64)
@cython.final
cdef class Quote(_BidAsk):
    """The venue's own best-bid-ask stream."""


@cython.freelist(64)
@cython.final
cdef class Touch(_BidAsk):
    """Best bid and ask of the book kept here."""


@cython.freelist(64)
@cython.final
cdef class Level(Record):
    """A price level's new size; 0 deletes it. RESET in flags: clear the book first."""
    FIELDS = ("side", "price", "size", "sequence", "order_count")

    @property
    def price(self):
        return self.price_at(self.data.body.level.price)

    @property
    def size(self):
        return self.size_at(self.data.body.level.size)

    @property
    def side(self):
        return _SIDES[self.data.body.level.side]

    @property
    def sequence(self):
        return self.data.body.level.sequence

    @property
    def order_count(self):
        return self.data.body.level.order_count


@cython.final
cdef class Mark(Record):
    """Mark or index price (kind says which)."""
    FIELDS = ("price",)

    @property
    def price(self):
        return self.price_at(self.data.body.mark.price)


@cython.final
cdef class Funding(Record):
    FIELDS = ("rate", "predicted", "next_ns", "interval_s")

    @property
    def rate(self):
        return _decimal(self.data.body.funding.rate_e12, -12)

    @property
    def predicted(self):
        return _decimal(self.data.body.funding.predicted_e12, -12)

    @property
    def next_ns(self):
        return self.data.body.funding.next_ns

    @property
    def interval_s(self):
        return self.data.body.funding.interval_s


@cython.final
cdef class OpenInterest(Record):
    FIELDS = ("size", "value")

    @property
    def size(self):
        return self.size_at(self.data.body.open_interest.size)

    @property
    def value(self):
        return self.price_at(self.data.body.open_interest.value)


@cython.final
cdef class Liquidation(Record):
    FIELDS = ("price", "size", "side", "order_id")

    @property
    def price(self):
        return self.price_at(self.data.body.liquidation.price)

    @property
    def size(self):
        return self.size_at(self.data.body.liquidation.size)

    @property
    def side(self):
        return _SIDES[self.data.body.liquidation.side]

    @property
    def order_id(self):
        return self.data.body.liquidation.order_id


@cython.final
cdef class Candle(Record):
    FIELDS = ("open", "high", "low", "close", "volume", "quote_volume", "start_ns", "count", "interval_s")

    @property
    def open(self):
        return self.price_at(self.data.body.word[0])

    @property
    def high(self):
        return self.price_at(self.data.body.word[1])

    @property
    def low(self):
        return self.price_at(self.data.body.word[2])

    @property
    def close(self):
        return self.price_at(self.data.body.word[3])

    @property
    def volume(self):
        return self.size_at(self.more[0])

    @property
    def quote_volume(self):
        return self.price_at(self.more[1])

    @property
    def start_ns(self):
        return self.more[2]

    @property
    def count(self):
        return <uint32_t>(self.more[3] & 0xffffffff)

    @property
    def interval_s(self):
        return <uint32_t>((<uint64_t>self.more[3]) >> 32)


@cython.final
cdef class Ticker(Record):
    """24-hour statistics."""
    FIELDS = ("price", "open", "high", "low", "volume", "quote_volume", "average", "count")

    @property
    def price(self):
        return self.price_at(self.data.body.word[0])

    @property
    def open(self):
        return self.price_at(self.data.body.word[1])

    @property
    def high(self):
        return self.price_at(self.data.body.word[2])

    @property
    def low(self):
        return self.price_at(self.data.body.word[3])

    @property
    def volume(self):
        return self.size_at(self.more[0])

    @property
    def quote_volume(self):
        return self.price_at(self.more[1])

    @property
    def average(self):
        return self.price_at(self.more[2])

    @property
    def count(self):
        return None if self.more[3] == FH_UNDEFINED else self.more[3]


@cython.final
cdef class Greeks(Record):
    """Option analytics: floats, NaN where the venue sent none."""
    FIELDS = ("delta", "gamma", "vega", "theta", "rho", "bid_iv", "ask_iv", "mark_iv", "underlying", "rate")

    cdef double at(self, int index):
        cdef double value
        if index < 4:
            memcpy(&value, &self.data.body.word[index], 8)
        else:
            memcpy(&value, &self.more[index - 4], 8)
        return value

    def __getattr__(self, name):
        if name in self.FIELDS:
            return self.at(self.FIELDS.index(name))
        raise AttributeError(f"a Greeks record has no {name!r}; it has {', '.join(self.FIELDS)}")


@cython.final
cdef class Status(Record):
    """Something happened to a stream, session or ring; `code` is its name in STATUS_CODES."""
    FIELDS = ("code", "detail", "a", "b", "c")

    @property
    def code(self):
        return STATUS_CODES.get(self.data.body.status.code, str(self.data.body.status.code))

    @property
    def detail(self):
        return self.data.body.status.detail

    @property
    def a(self):
        return self.data.body.status.a

    @property
    def b(self):
        return self.data.body.status.b

    @property
    def c(self):
        return self.data.body.status.c


@cython.final
cdef class Instrument:
    """One row of the instance's instrument table. `feed.instrument(venue, symbol)` finds it."""
    cdef readonly uint32_t id
    cdef readonly str venue, symbol, canonical, kind
    cdef readonly object tick, lot, multiplier, strike
    cdef readonly bint inverse
    cdef readonly uint64_t expiry_ns

    def __repr__(self):
        return f"<Instrument {self.id} {self.venue} {self.canonical} tick={self.tick} lot={self.lot}>"

    def __index__(self):
        return self.id


cdef Instrument _instrument_of(const fh_instrument *row):
    cdef Instrument found = Instrument.__new__(Instrument)
    found.id = row.id
    found.venue = row.venue_name[:24].split(b"\0", 1)[0].decode("utf-8", "replace")
    found.symbol = row.symbol[:48].split(b"\0", 1)[0].decode("utf-8", "replace")
    found.canonical = row.canonical[:64].split(b"\0", 1)[0].decode("utf-8", "replace")
    found.kind = _INSTRUMENT_KINDS.get(row.kind, "unknown")
    found.tick = _decimal(row.tick, row.price_exponent)
    found.lot = _decimal(row.lot, row.size_exponent)
    found.multiplier = _decimal(row.multiplier, row.multiplier_exponent)
    found.strike = _decimal(row.strike, row.price_exponent)
    found.inverse = row.inverse
    found.expiry_ns = row.expiry_ns
    return found


@cython.final
cdef class Last:
    """Last values of one instrument, consistent with each other. Decimals; None where nothing came yet.

    position: ring position they reflect; status: state of the book ("LIVE", "GAP", …, None without a book)."""
    cdef fh_state_l1 row
    cdef readonly int ring

    cdef object price_at(self, int64_t mantissa):
        return _decimal(mantissa, self.row.price_exponent)

    @property
    def position(self):
        return self.row.position

    @property
    def ts_recv_ns(self):
        return self.row.ts_recv_ns

    @property
    def ts_event_ns(self):
        return self.row.ts_event_ns

    @property
    def sequence(self):
        return self.row.sequence

    @property
    def bid_price(self):
        return self.price_at(self.row.bid_price)

    @property
    def bid_size(self):
        return _decimal(self.row.bid_size, self.row.size_exponent)

    @property
    def ask_price(self):
        return self.price_at(self.row.ask_price)

    @property
    def ask_size(self):
        return _decimal(self.row.ask_size, self.row.size_exponent)

    @property
    def trade_price(self):
        return self.price_at(self.row.trade_price)

    @property
    def trade_size(self):
        return _decimal(self.row.trade_size, self.row.size_exponent)

    @property
    def trade_id(self):
        return self.row.trade_id

    @property
    def mark_price(self):
        return self.price_at(self.row.mark_price)

    @property
    def index_price(self):
        return self.price_at(self.row.index_price)

    @property
    def funding_rate(self):
        return _decimal(self.row.funding_e12, -12)

    @property
    def open_interest(self):
        return _decimal(self.row.open_interest, self.row.size_exponent)

    @property
    def status(self):
        return STATUS_CODES.get(self.row.status) if self.row.status else None

    @property
    def stale(self):
        return bool(self.row.flags & FH_STALE)

    def __repr__(self):
        return (f"<Last bid={self.bid_price} x {self.bid_size} ask={self.ask_price} x {self.ask_size} "
                f"trade={self.trade_price} status={self.status}>")


@cython.final
cdef class Book:
    """The best 20 levels a side: bids and asks are lists of (price, size), exact, best first."""
    cdef readonly list bids, asks
    cdef readonly uint64_t position, sequence, ts_event_ns
    cdef readonly int ring, flags

    @property
    def stale(self):
        return bool(self.flags & FH_STALE)

    def __repr__(self):
        return f"<Book bids={self.bids[:1]} asks={self.asks[:1]} sequence={self.sequence}>"


cdef dict _RECORD_TYPES = {FH_TRADE: Trade, FH_QUOTE: Quote, FH_TOUCH: Touch, FH_LEVEL: Level, FH_MARK: Mark, FH_INDEX: Mark,
                           FH_FUNDING: Funding, FH_OPEN_INTEREST: OpenInterest, FH_LIQUIDATION: Liquidation,
                           FH_CANDLE: Candle, FH_TICKER: Ticker, FH_GREEKS: Greeks, FH_STATUS: Status}


cdef Record _record_new(const fh_record *slot):
    """An empty typed record for this slot's kind; the hot kinds are made without a look-up."""
    if slot.kind == FH_LEVEL:
        return Level.__new__(Level)
    if slot.kind == FH_QUOTE:
        return Quote.__new__(Quote)
    if slot.kind == FH_TRADE:
        return Trade.__new__(Trade)
    if slot.kind == FH_TOUCH:
        return Touch.__new__(Touch)
    cdef object kind = _RECORD_TYPES.get(slot.kind, Record)
    return kind.__new__(kind)


@cython.final
cdef class Batch:
    """New records of one ring: a read-only numpy view of shared memory, no copy, complete events only.

    records     structured array (n,), dtype FULL_DTYPE (64 bytes a row)
    lost        records this ring lost to lapping just before the first row
    ring        worker number
    Every field of FULL_DTYPE is an attribute too: batch.price, batch.instrument, batch.kind, …; rows of kind
    FH_CONTINUATION (0) carry further words of the row before. The view is good until the ring comes round again:
    valid() says whether it still is. Call poll() often enough, or copy."""
    cdef readonly object records
    cdef readonly uint64_t lost
    cdef readonly int ring
    cdef uint64_t position
    cdef Feed feed

    def __len__(self):
        return len(self.records)

    def __getattr__(self, name):
        try:
            return self.records[name]
        except ValueError:
            raise AttributeError(f"a batch has no field {name!r}; it has {', '.join(FULL_DTYPE.names)}") from None

    def valid(self):
        """Whether no row has been overwritten since poll(): check after use when running close to a lap."""
        return len(self.records) == 0 or bool(fh_ring_valid(&self.feed.c.ring[self.ring], self.position))


@cython.final
cdef class _Span:
    """Owner of nothing: lends a C range to numpy, and keeps the feed alive while a view exists."""
    cdef Feed feed
    cdef char *at
    cdef Py_ssize_t size

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        from cpython.buffer cimport PyBuffer_FillInfo
        PyBuffer_FillInfo(buffer, self, self.at, self.size, 1, flags)


@cython.final
cdef class Feed:
    """A reader attached to every ring of one instance. Made by attach(); close() or `with` detaches.

    lost        records lost so far, over all rings
    spin        True: waiting burns the CPU instead of sleeping
    """
    cdef fh_feed c
    cdef bint opened
    cdef public bint spin
    cdef readonly str name
    cdef readonly uint64_t lost
    cdef list arrays
    cdef list _instruments
    cdef readonly object price_scale, size_scale
    cdef double[::1] _price_scale, _size_scale
    cdef int8_t[::1] _price_exponent, _size_exponent
    cdef int turn
    # the span being iterated
    cdef const fh_record *slot
    cdef uint64_t left
    cdef int slot_ring

    def __cinit__(self):
        memset(&self.c, 0, sizeof(fh_feed))

    def __init__(self, str name, bint spin=False, str reader_name="", directory=None, bint oldest=False):
        cdef char error[256]
        cdef bytes path = os.fsencode(directory if directory is not None else _instance.directory(name))
        cdef bytes reader = (reader_name or os.path.basename(os.sys.argv[0] or "python") if hasattr(os, "sys") else reader_name).encode()
        if fh_feed_open(&self.c, path, reader, error, sizeof(error)) != 0:
            raise FeedError(error.decode("utf-8", "replace"))
        self.opened = True
        self.name = name
        self.spin = spin
        self._load_instruments()
        self.arrays = [self._array(ring) for ring in range(self.c.ring_count)]
        if oldest:
            for ring in range(self.c.ring_count):
                fh_ring_oldest(&self.c.ring[ring])

    def __dealloc__(self):
        if self.opened:
            fh_feed_close(&self.c)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Detach. Views of batches stay readable until they are dropped; the slot in `readers` is freed now."""
        fh_feed_leave(&self.c)

    # -- instruments -----------------------------------------------------------------------------------------

    cdef _load_instruments(self):
        cdef uint32_t row_max = self.c.instruments.row_max
        self.price_scale = numpy.ones(row_max)
        self.size_scale = numpy.ones(row_max)
        self._price_scale = self.price_scale
        self._size_scale = self.size_scale
        self._price_exponent = numpy.zeros(row_max, "i1")
        self._size_exponent = numpy.zeros(row_max, "i1")
        self._instruments = []
        for id in range(row_max):
            row = fh_feed_instrument(&self.c, id)
            if row == NULL or row.state == 0:
                self._instruments.append(None)
                continue
            self._instruments.append(_instrument_of(row))
            self._scale(id, row.price_exponent, row.size_exponent)

    cdef void _scale(self, uint32_t id, int price_exponent, int size_exponent):
        self._price_exponent[id] = price_exponent
        self._size_exponent[id] = size_exponent
        self._price_scale[id] = 10.0 ** price_exponent
        self._size_scale[id] = 10.0 ** size_exponent

    @property
    def instruments(self):
        """All Instruments of the instance, by id."""
        return [row for row in self._instruments if row is not None]

    def instrument_at(self, uint32_t id):
        """The Instrument with this id, or None."""
        return self._instruments[id] if id < len(self._instruments) else None

    def instrument(self, str venue, str symbol):
        """The Instrument of a venue by canonical or venue symbol. LookupError with near names."""
        names = {}
        for row in self.instruments:
            if row.venue == venue:
                if symbol in (row.canonical, row.symbol):
                    return row
                names[row.canonical] = names[row.symbol] = row
        if not names:
            venues = sorted({row.venue for row in self.instruments})
            raise LookupError(f"no venue {venue!r} in instance {self.name!r}; it has {', '.join(venues) or 'none'}")
        near = ", ".join(difflib.get_close_matches(symbol, names, n=3)) or ", ".join(list(names)[:3])
        raise LookupError(f"no instrument {symbol!r} at {venue} in instance {self.name!r}; near: {near}")
