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
import sys

import numpy

cimport cython
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.exc cimport PyErr_CheckSignals
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memset
from feedhandler._cext cimport *

from feedhandler import instance as _instance

cdef extern from *:
    """
    #include <stdint.h>
    #define fh_load_acquire_u64(word) __atomic_load_n((const uint64_t *)(word), __ATOMIC_ACQUIRE)
    """
    uint64_t fh_load_acquire_u64(const uint64_t *word) nogil

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
TRADE, QUOTE, TOUCH, LEVEL, MARK, INDEX, FUNDING = FH_TRADE, FH_QUOTE, FH_TOUCH, FH_LEVEL, FH_MARK, FH_INDEX, FH_FUNDING
OPEN_INTEREST, LIQUIDATION, CANDLE, TICKER, GREEKS, STATUS = FH_OPEN_INTEREST, FH_LIQUIDATION, FH_CANDLE, FH_TICKER, FH_GREEKS, FH_STATUS
"""What batch.kind is compared with."""
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


@cython.final
cdef class Quote(_BidAsk):
    """The venue's own best-bid-ask stream."""


@cython.final
cdef class Touch(_BidAsk):
    """Best bid and ask of the book kept here."""


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


cdef object _real(int64_t word):
    cdef double value
    memcpy(&value, &word, 8)
    return None if value != value else value


@cython.final
cdef class Candle(Record):
    FIELDS = ("open", "high", "low", "close", "volume", "quote_volume", "start_ns", "count", "interval_s", "closed")

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
        return _real(self.more[1])

    @property
    def start_ns(self):
        return self.more[2]

    @property
    def count(self):
        return <uint32_t>(self.more[3] & 0xffffffff)

    @property
    def interval_s(self):
        return <uint32_t>((<uint64_t>self.more[3]) >> 32) & ~FH_CANDLE_CLOSED

    @property
    def closed(self):
        """Whether the interval is over. False where it goes on, and at venues that do not say."""
        return (<uint64_t>self.more[3] >> 32) & FH_CANDLE_CLOSED != 0


@cython.final
cdef class Ticker(Record):
    """24-hour statistics. quote_volume and average are floats, None where the venue tells none."""
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
        return _real(self.more[1])

    @property
    def average(self):
        return _real(self.more[2])

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
    """New records of one ring: a read-only numpy view of shared memory, complete events only.

    records     structured array (n,), dtype FULL_DTYPE (64 bytes a row)
    lost        records this ring lost to lapping just before the first row
    ring        worker number
    Every field of FULL_DTYPE is an attribute too: batch.price, batch.instrument, batch.kind, …; rows of kind
    0 carry further words of the row before. The view is good until the ring comes round again: valid() says
    whether it still is."""
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
        """Whether no row has been overwritten so far: ask after use when running close to a lap."""
        return len(self.records) == 0 or self.feed.intact(self.ring, self.position)


@cython.final
cdef class _Slots:
    """Lends a ring's slots to numpy, and keeps their mapping while a view exists."""
    cdef Feed feed
    cdef char *at
    cdef Py_ssize_t size

    def __getbuffer__(self, Py_buffer *buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.at, self.size, 1, flags)


cdef enum:
    COPY_COUNT = 1024          # records taken at a time by iteration: 64 KiB, a share of L2
    SPIN_NS = 50000            # iteration looks for this long before it sleeps: a wake-up costs about as much
    SLICE_NS = 50000000        # longest wait at a time, so that Ctrl-C is seen and silent workers are noticed
    LOOKS = 64                 # looks at the heads between two looks at the clock


@cython.final
cdef class Feed:
    """A reader of one instance, made by attach(). Use it from one thread; close() or `with` detaches.

    lost         records lost so far over all rings: received + lost == published, always
    overwritten  of those received in batches, rows whose memory the writer had reached again before the next poll():
                 ask valid() after use, or copy, when running that close to a lap
    price_scale  float64 by instrument id: batch.price * feed.price_scale[batch.instrument]
    size_scale   the same for sizes
    """
    cdef fh_feed c
    cdef fh_record *copied
    cdef size_t copied_max, copied_count, copied_at
    cdef int copied_ring
    cdef readonly bint closed
    cdef public bint spin
    cdef readonly str name
    cdef readonly uint64_t lost, overwritten
    cdef readonly object price_scale, size_scale
    cdef double[::1] _price_scale, _size_scale
    cdef signed char[::1] _price_exponent, _size_exponent
    cdef unsigned char[::1] _scaled      # 1: the exponents at our position are known
    cdef uint64_t listed                 # generation of `instruments` that we have read
    cdef list _instruments, _arrays
    cdef object _empty
    cdef int lent_ring          # ring of the span that the last batch shows, -1: none
    cdef size_t lent_count
    cdef uint64_t lent_position

    def __cinit__(self):
        memset(&self.c, 0, sizeof(fh_feed))
        self.lent_ring = -1

    def __init__(self, str name, bint spin=False, str reader_name="", directory=None):
        cdef char error[400]
        if directory is None:
            _instance.check_name(name)
        path = os.fsencode(directory if directory is not None else _instance.directory(name))
        if fh_feed_open(&self.c, path, error, sizeof(error)) != FH_FEED_OK:
            text = (<bytes>error).decode("utf-8", "replace")
            raise FeedError(f"cannot attach to instance {name!r}: {text}; is it running? feedhandler status -n {name}")
        self.name = name
        self.spin = spin
        self._sign(reader_name)
        self._arrays = [None] * FH_RING_MAX
        self._empty = numpy.empty(0, FULL_DTYPE)
        self._allocate()
        self._load_instruments()

    def _sign(self, str reader_name):
        """Put our name and start time into our slot of `readers`, for `feedhandler readers`."""
        if self.c.slot == NULL:
            return
        self.c.slot.pid_start = _instance.pid_start(os.getpid())
        cdef bytes text = (reader_name or os.path.basename(sys.argv[0]) or "python").encode()[:39]
        memset(self.c.slot.name, 0, 40)
        memcpy(self.c.slot.name, <const char *>text, len(text))

    def _allocate(self):
        """Have room for the largest event there can be: a quarter of the largest ring. Rings may join later."""
        largest = max([self.c.ring[i].slot_count for i in range(self.c.ring_count) if self.c.ring[i].ring != NULL] or [0])
        cdef size_t count = max(largest // 4 + 64, COPY_COUNT)
        cdef fh_record *copied
        if count <= self.copied_max:
            return
        copied = <fh_record *>realloc(self.copied, count * sizeof(fh_record))
        if copied == NULL:
            raise MemoryError("no memory for the reader's buffer")
        self.copied, self.copied_max = copied, count

    def __dealloc__(self):
        free(self.copied)
        fh_feed_close(&self.c)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        """Detach. Arrays of batches stay readable until they are dropped; our slot in `readers` is free from now on."""
        self.closed = True
        if self.c.slot != NULL:
            self.c.slot.pid = 0
            self.c.slot = NULL

    cdef int _open(self) except -1:
        if self.closed:
            raise FeedError(f"this feed of instance {self.name!r} is closed; attach again")
        return 0

    # -- instruments -----------------------------------------------------------------------------------------

    cdef int _load_instruments(self) except -1:
        cdef uint32_t row_max = self.c.instruments.row_max, i
        self.price_scale = numpy.ones(row_max)
        self.size_scale = numpy.ones(row_max)
        self._price_scale = self.price_scale
        self._size_scale = self.size_scale
        self._price_exponent = numpy.zeros(row_max, "i1")
        self._size_exponent = numpy.zeros(row_max, "i1")
        self._scaled = numpy.zeros(row_max, "u1")
        self._instruments = [None] * row_max
        self.refresh()
        for i in range(self.c.ring_count):
            self._sync_exponents(i)
        return 0

    cdef int refresh(self) except -1:
        """Read what was listed since we last looked. A row's exponents are those its first record comes in."""
        cdef const fh_instrument *row = <const fh_instrument *>(<const char *>self.c.instruments + 4096)
        cdef uint32_t i
        self.listed = fh_load_acquire_u64(&self.c.instruments.generation)   # pairs with the release of the supervisor's tables
        for i in range(self.c.instruments.row_max):
            if row[i].state != 0 and self._instruments[i] is None:
                self._instruments[i] = _instrument_of(&row[i])
                if not self._scaled[i]:
                    self._scale(i, row[i].price_exponent, row[i].size_exponent)
        return 0

    cdef void _scale(self, uint32_t instrument, int price_exponent, int size_exponent) noexcept:
        if instrument < <uint32_t>self._price_exponent.shape[0]:
            self._price_exponent[instrument] = price_exponent
            self._size_exponent[instrument] = size_exponent
            self._price_scale[instrument] = 10.0 ** price_exponent
            self._size_scale[instrument] = 10.0 ** size_exponent
            self._scaled[instrument] = 1

    cdef void _changed(self, const fh_record *record) noexcept:
        self._scale(record.instrument, <int8_t>record.body.status.a, <int8_t>record.body.status.b)

    cdef int _sync_exponents(self, uint32_t ring) except -1:
        """Exponents as of this ring's read position: those of the rows, taken back by every change that is still ahead."""
        cdef fh_ring_reader *reader = &self.c.ring[ring]
        cdef const fh_state_row *row
        cdef const fh_record *slot
        cdef fh_state_l1 l1
        cdef fh_record record
        cdef uint32_t i
        cdef uint64_t position
        cdef int there = 1
        if reader.ring == NULL:
            return 0
        for i in range(self.c.state.row_max):
            row = fh_feed_state(&self.c, i)
            if row.owner == ring and fh_state_read_l1(row, &l1) == FH_FEED_OK and l1.position:
                self._scale(i, l1.price_exponent, l1.size_exponent)
        seen = set()
        position = reader.position
        while reader.ring.changed > reader.position:
            slot = fh_ring_peek(reader, position, &there)
            if not there:
                break
            memcpy(&record, slot, sizeof(record))
            position += 1
            if fh_ring_is(&record, FH_INSTRUMENT_CHANGED) and record.instrument not in seen:
                seen.add(record.instrument)
                self._scale(record.instrument, <int8_t>(record.body.status.c & 0xff), <int8_t>(record.body.status.c >> 8 & 0xff))
        return 0

    @property
    def instruments(self):
        """All Instruments listed by now, by id."""
        if self.listed != self.c.instruments.generation:
            self.refresh()
        return [row for row in self._instruments if row is not None]

    def instrument_at(self, uint32_t id):
        """The Instrument with this id, or None."""
        if self.listed != self.c.instruments.generation:
            self.refresh()
        return self._instruments[id] if id < len(self._instruments) else None

    def instrument(self, str venue, str symbol):
        """The Instrument of a venue by canonical or venue symbol. LookupError names what is near."""
        names = {}
        for row in self.instruments:
            if row.venue == venue:
                if symbol in (row.canonical, row.symbol):
                    return row
                names[row.canonical] = names[row.symbol] = row
        if not names:
            venues = sorted({row.venue for row in self.instruments})
            near = difflib.get_close_matches(venue, venues, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"it has {', '.join(venues) or 'none'}"
            raise LookupError(f"no venue {venue!r} in instance {self.name!r}; {hint}")
        near = ", ".join(difflib.get_close_matches(symbol, names, n=3)) or ", ".join(list(names)[:3])
        raise LookupError(f"no instrument {symbol!r} at {venue} in instance {self.name!r}; near: {near}")

    # -- last values -----------------------------------------------------------------------------------------

    def quote(self, instrument):
        """Last values of an Instrument (or id) as a consistent Last; None while nothing has come."""
        self._open()
        cdef Last last = Last.__new__(Last)
        cdef const fh_state_row *row = self._row(instrument)
        if fh_state_read_l1(row, &last.row) != FH_FEED_OK:
            return None
        last.ring = row.owner
        return last

    def book(self, instrument):
        """The best 20 levels a side of an Instrument (or id) as a consistent Book; None while there is none."""
        self._open()
        cdef fh_state_book value
        cdef const fh_state_row *row = self._row(instrument)
        if fh_state_read_book(row, &value) != FH_FEED_OK:
            return None
        cdef Book book = Book.__new__(Book)
        book.bids = [(_decimal(value.bid[i].price, value.price_exponent), _decimal(value.bid[i].size, value.size_exponent))
                     for i in range(min(value.bid_count, FH_BOOK_TOP))]
        book.asks = [(_decimal(value.ask[i].price, value.price_exponent), _decimal(value.ask[i].size, value.size_exponent))
                     for i in range(min(value.ask_count, FH_BOOK_TOP))]
        book.position, book.sequence, book.ts_event_ns = value.position, value.sequence, value.ts_event_ns
        book.ring, book.flags = row.owner, value.flags
        return book

    cdef const fh_state_row *_row(self, instrument) except NULL:
        cdef uint32_t id = instrument.id if isinstance(instrument, Instrument) else instrument
        cdef const fh_state_row *row = fh_feed_state(&self.c, id)
        if row == NULL:
            raise LookupError(f"no instrument with id {id}; this instance has room for {self.c.state.row_max}")
        return row

    # -- batches ---------------------------------------------------------------------------------------------

    def poll(self, timeout=0.0):
        """The next Batch, from one ring after the other; an empty one when `timeout` seconds passed without news.

        timeout None waits for ever. Do not mix with iteration: both move the same position."""
        self._open()
        cdef uint64_t begin = fh_clock_mono_ns()
        cdef uint64_t end = <uint64_t>-1 if timeout is None else begin + <uint64_t>(timeout * 1e9)
        self._return_span()
        while True:
            if self.listed != self.c.instruments.generation:
                self.refresh()
            batch = self._next_batch()
            if batch is not None:
                return batch
            if not self._wait(begin, end):
                return self._batch(self._empty, 0, -1)

    cdef int _return_span(self) except -1:
        """The last batch is done with. Its rows were received, whatever the writer did to them meanwhile."""
        if self.lent_ring >= 0:
            if not self.intact(self.lent_ring, self.lent_position):
                self.overwritten += self.lent_count
            self.lent_ring = -1
        return 0

    cdef object _next_batch(self):
        """A Batch of the next ring that has news, or None."""
        cdef const fh_record *first = NULL
        cdef size_t count = 0
        cdef uint64_t lost = 0
        cdef uint32_t i, ring
        cdef int result
        self.c.polls += 1
        if self.c.polls % FH_LOOK_POLLS == 0 and (batch := self._look_around()) is not None:
            return batch
        for i in range(self.c.ring_count):
            ring = self.c.turn if self.c.turn < self.c.ring_count else 0
            self.c.turn = ring + 1
            if self.c.ring[ring].ring == NULL or fh_feed_held(&self.c, &self.c.ring[ring]):
                continue
            result = fh_ring_batch(&self.c.ring[ring], &first, &count, &lost)
            if result == FH_FEED_LAPPED:
                self._lapped(ring, lost)
                return self._batch(self._empty, lost, ring)
            if result == FH_FEED_EMPTY or (fh_ring_is(first, FH_MOVED_IN) and fh_feed_hold(&self.c, &self.c.ring[ring], first)):
                continue
            if fh_ring_is(first, FH_INSTRUMENT_CHANGED):
                self._changed(first)
            return self._lend(ring, first, count)
        return self._look_around()

    cdef object _look_around(self):
        """A Batch of the one record that says a ring fell silent or lives again, or None."""
        cdef fh_record local
        cdef fh_feed_news news
        memset(&news, 0, sizeof(news))
        if fh_feed_idle(&self.c, &local, &news) == FH_FEED_OK:
            return self._batch(numpy.frombuffer((<char *>&local)[:sizeof(local)], FULL_DTYPE), 0, news.worker)
        return None

    cdef Batch _lend(self, uint32_t ring, const fh_record *first, size_t count):
        cdef Py_ssize_t begin = first - self.c.ring[ring].slots
        if self._arrays[ring] is None:
            self._arrays[ring] = self._array(ring)
        self.lent_ring, self.lent_count, self.lent_position = ring, count, self.c.ring[ring].position
        batch = self._batch((<object>self._arrays[ring])[begin:begin + <Py_ssize_t>count], 0, ring)
        fh_ring_advance(&self.c.ring[ring], count)
        if self.c.slot != NULL:
            self.c.slot.ring[ring].cursor = self.c.ring[ring].position
            self.c.slot.ring[ring].lost = self.c.ring[ring].lost
        return batch

    cdef object _array(self, uint32_t ring):
        cdef _Slots slots = _Slots.__new__(_Slots)
        slots.feed = self
        slots.at = <char *>self.c.ring[ring].slots
        slots.size = 2 * self.c.ring[ring].slot_count * sizeof(fh_record)
        return numpy.frombuffer(slots, FULL_DTYPE)

    cdef Batch _batch(self, records, uint64_t lost, int ring):
        cdef Batch batch = Batch.__new__(Batch)
        batch.records, batch.lost, batch.ring, batch.feed = records, lost, ring, self
        batch.position = self.c.ring[ring].position if ring >= 0 else 0
        return batch

    cdef bint intact(self, int ring, uint64_t position):
        cdef fh_ring_reader reader = self.c.ring[ring]
        reader.position = position
        return fh_ring_valid(&reader)

    cdef int _lapped(self, uint32_t ring, uint64_t lost) except -1:
        self.lost += lost
        self._sync_exponents(ring)
        return 0

    cdef bint _wait(self, uint64_t begin, uint64_t end) except -1:
        """Wait for news; False when the time is over. Looks for SPIN_NS (spin: always) before it sleeps, other threads may run."""
        cdef uint64_t now = fh_clock_mono_ns(), until
        if now >= end:
            return False
        until = min(end, now + <uint64_t>SLICE_NS)
        with nogil:
            if self.spin or now - begin < SPIN_NS:
                self._look(until if self.spin else now + SPIN_NS)
            else:
                fh_feed_wait(&self.c, until - now)
        PyErr_CheckSignals()
        return True

    cdef void _look(self, uint64_t until) noexcept nogil:
        """Look at the heads until one has moved, or it is `until`."""
        cdef int i
        while True:
            for i in range(LOOKS):
                if fh_feed_pending(&self.c):
                    return
            if fh_clock_mono_ns() >= until:
                return

    # -- records ---------------------------------------------------------------------------------------------

    def __iter__(self):
        return self

    def __next__(self):
        cdef Record record
        while self.copied_at >= self.copied_count:
            self._fetch(<uint64_t>-1)
        return self._take()

    def records(self, timeout=None):
        """Iterate over typed records; ends when `timeout` seconds (None: never) have passed since the call."""
        cdef uint64_t end
        end = <uint64_t>-1 if timeout is None else fh_clock_mono_ns() + <uint64_t>(timeout * 1e9)
        while True:
            while self.copied_at >= self.copied_count:
                if not self._fetch(end):
                    return
            yield self._take()

    cdef bint _fetch(self, uint64_t end) except -1:
        """Copy the next complete events of a ring into our buffer. False when the time is over."""
        cdef fh_feed_news news
        cdef uint64_t begin = fh_clock_mono_ns()
        cdef int result
        self._open()
        self._return_span()
        while True:
            if self.listed != self.c.instruments.generation:
                self.refresh()
            result = fh_feed_poll(&self.c, self.copied, COPY_COUNT, &news)
            if result == FH_FEED_SMALL:
                self._allocate()
                result = fh_feed_poll(&self.c, self.copied, self.copied_max, &news)
            if result == FH_FEED_LAPPED:
                self._lapped(news.worker, news.lost)
            elif result == FH_FEED_OK:
                self.copied_at, self.copied_count, self.copied_ring = 0, news.count, news.worker
                return True
            elif result == FH_FEED_EMPTY and not self._wait(begin, end):
                return False

    cdef Record _take(self):
        """The record at copied_at as an object, its continuations with it."""
        cdef const fh_record *slot = &self.copied[self.copied_at]
        cdef Record record = _record_new(slot)
        cdef int more = 0
        record.data = slot[0]
        record.ring = self.copied_ring
        self.copied_at += 1
        while more < 2 and self.copied_at < self.copied_count and self.copied[self.copied_at].kind == FH_CONTINUATION:
            memcpy(&record.more[4 * more], self.copied[self.copied_at].body.word, 32)
            self.copied_at += 1
            more += 1
        record.slot_count = 1 + more
        if slot.kind == FH_STATUS and slot.body.status.code == FH_INSTRUMENT_CHANGED:
            self._changed(slot)
        if slot.instrument < <uint32_t>self._price_exponent.shape[0]:
            record.price_exponent = self._price_exponent[slot.instrument]
            record.size_exponent = self._size_exponent[slot.instrument]
        return record

    # -- falling behind --------------------------------------------------------------------------------------

    def rebase(self):
        """Skip to what is new, on every ring; go on from quote() and book(). Returns how many records were skipped.

        Join without a hole: after rebase(), take book(x), then apply only records of x at positions (record.position
        or batch.position - 1) of that ring that are not below book(x).position."""
        self._return_span()
        cdef uint32_t i
        cdef uint64_t skipped = self.copied_count - self.copied_at, lost = 0, head
        self.copied_at = self.copied_count = 0
        for i in range(self.c.ring_count):
            if self.c.ring[i].ring != NULL:
                head = self.c.ring[i].ring.head
                if head > self.c.ring[i].position:
                    skipped += head - self.c.ring[i].position
                    self.c.ring[i].position = head
                self._sync_exponents(i)
        return skipped

    @property
    def lag(self):
        """Records published and not yet read, over all rings."""
        return sum(self.c.ring[i].ring.head - self.c.ring[i].position for i in range(self.c.ring_count)
                   if self.c.ring[i].ring != NULL and self.c.ring[i].ring.head > self.c.ring[i].position)


def attach(name, *, spin=False, reader_name="", directory=None):
    """Attach to a running instance by name. FeedError says what is missing and what to run.

    spin: wait by looking instead of sleeping (lowest latency, one whole CPU). reader_name: shown by
    `feedhandler readers`. Reading starts at what is new; quote() and book() have the last values."""
    return Feed(name, spin=spin, reader_name=reader_name, directory=directory)


def readers(name, directory=None):
    """Attached readers of an instance: dicts with pid, name, alive, polled_ago_s, lag and lost over all rings."""
    cdef fh_feed c
    cdef char error[400]
    path = os.fsencode(directory if directory is not None else _instance.directory(name))
    if fh_feed_open(&c, path, error, sizeof(error)) != FH_FEED_OK:
        raise FeedError((<bytes>error).decode("utf-8", "replace"))
    found = []
    cdef fh_reader_slot *slot
    try:
        if c.readers == NULL:
            return []
        slot = <fh_reader_slot *>(<char *>c.readers + 4096)
        for i in range(FH_READER_MAX):
            if slot[i].pid and &slot[i] != c.slot:
                found.append(_reader_dict(&c, &slot[i]))
    finally:
        fh_feed_close(&c)
    return found


cdef dict _reader_dict(fh_feed *c, const fh_reader_slot *slot):
    cdef uint64_t lag = 0, lost = 0, head
    for i in range(c.ring_count):
        head = c.ring[i].ring.head if c.ring[i].ring != NULL else 0
        if slot.ring[i].cursor and head > slot.ring[i].cursor:
            lag += head - slot.ring[i].cursor
        lost += slot.ring[i].lost
    return {"pid": slot.pid, "name": slot.name[:40].split(b"\0", 1)[0].decode("utf-8", "replace"),
            "alive": _instance.alive(slot.pid, slot.pid_start), "lag": lag, "lost": lost,
            "polled_ago_s": round((fh_clock_mono_ns() - slot.polled_ns) / 1e9, 3) if slot.polled_ns else 0.0}
