# cython: language_level=3
"""The contract a venue fulfils, and its defaults.

A venue is one file, `feedhandler/venues/<venue>.pyx`, with one subclass of Venue. It has two halves:

Data plane (`nogil`, once per frame): decode(), decode_snapshot(), chain(), checksum().
Control plane (plain Python, once per second or connection): everything else.

All of a venue's limits are in `profiles`: one capacity profile per endpoint (URL class), as a dict in the
form described in `feedhandler/venues/README.md`.
"""
import dataclasses
import decimal
import re

from libc.math cimport isnan
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset
from feedhandler._cext cimport *

CHANNELS = ("trade", "agg_trade", "quote", "book", "ticker", "mark", "index", "funding",
            "open_interest", "liquidation", "candle", "greeks", "instrument")
"""Names of fh_channel, in its order."""


class VenueError(ValueError):
    """A request the venue cannot serve; the text says what, why, and what to ask for instead."""


@dataclasses.dataclass(frozen=True, slots=True)
class Channel:
    """What a user asks for: `name[depth][@speed]`, e.g. "trade", "book", "book20@100ms", "candle@1m"."""
    name: str
    depth: int = 0      # 0: the venue's fullest
    speed: str = ""     # "": the venue's fastest that needs no login; for candle: the interval

    @classmethod
    def parse(cls, text):
        match = re.fullmatch(r"([a-z_]+?)(\d*)(?:@(\w+))?", text)
        if not match or match[1] not in CHANNELS:
            raise VenueError(f"channel {text!r} is not known; use one of {', '.join(CHANNELS)}, "
                             f"with an optional depth and speed, as in book20@100ms or candle@1m")
        return cls(match[1], int(match[2] or 0), match[3] or "")


@dataclasses.dataclass(frozen=True, slots=True)
class Stream:
    """One subscription on the wire. (endpoint, wire) identifies it within a venue."""
    endpoint: str       # key of Venue.profiles
    wire: str           # the venue's own text: "btcusdt@depth@100ms", a channel name, or a JSON argument
    symbol: str         # venue symbol, "" for an all-market stream
    channel: str        # one of CHANNELS: the channel its events carry
    depth: int = 0      # book: levels the venue keeps for us (0: unlimited)
    snapshot: str = ""  # book: "in_band", "rest" or "window" (every message is whole)
    first_data_s: float = 30.0  # deadline from acknowledgement to first data; 0: none (silence is normal)


@dataclasses.dataclass(frozen=True, slots=True)
class Instrument:
    """One row of a venue's instrument list, exact: a value is a decimal text."""
    symbol: str
    canonical: str      # BTC-USDT, BTC-USDT-PERP, BTC-USD-20261225, BTC-USD-20261225-100000-C
    kind: str           # spot, perpetual, future, option
    tick: str
    lot: str
    multiplier: str = "1"
    inverse: bool = False
    expiry_ns: int = 0
    strike: str = ""
    listed: bool = True


@dataclasses.dataclass(frozen=True, slots=True)
class RestRequest:
    """A GET the supervisor makes for us: path and query under the venue's REST base, and its weight."""
    path: str
    weight: int = 1


# What a control frame meant. Each class is one thing a session can be told.
@dataclasses.dataclass(frozen=True, slots=True)
class Ack:
    """The venue answered a subscribe or unsubscribe: for one wire, or (wire "") for a whole request."""
    request_id: int     # 0: the venue did not say
    wire: str = ""
    accepted: bool = True
    reason: str = ""    # of a refusal, in the venue's words
    missing: tuple = () # wires the venue left out without an error
    wires: tuple | None = None  # exactly these were accepted, () being none; anything else asked was left out. None: not a list


@dataclasses.dataclass(frozen=True, slots=True)
class Reply:
    """Send this text now: the venue asked for a sign of life."""
    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class Alive:
    """A pong, heartbeat or status: nothing but life."""


@dataclasses.dataclass(frozen=True, slots=True)
class Closing:
    """The venue will close the connection (maintenance, upgrade): move away."""
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class Complaint:
    """An error that names no request: counted, shown by `errors`; wire says whose stream died, if any."""
    code: str
    reason: str
    wire: str = ""


cdef class Venue:
    """Base of every venue. Subclasses set the class attributes and override what differs.

    Class attributes:
        name      "binance-spot"
        profiles  {endpoint: capacity profile dict}
        urls      {endpoint: WebSocket URL}, rest_url: REST base ("" if none)
        resync    "rest" (new REST snapshot) or "resubscribe"
        price_digits_min  {kind of instrument: decimal places its derived prices (mark, index) have at most}. An instrument starts with
                  these where its range allows, else with its tick's, so that the first mark price changes no exponent
        size_digits_min   the same of sizes (open interest, volumes) that are finer than the lot
    """
    name = ""
    profiles = {}
    urls = {}
    rest_url = ""
    resync = "resubscribe"
    price_digits_min = {}
    size_digits_min = {}

    def __cinit__(self, uint32_t row_max=1024):
        self.row_max = row_max
        self.rows = <fh_instrument *>calloc(row_max, sizeof(fh_instrument))
        self.symbols = fh_symbols_new(row_max)
        if self.rows == NULL or self.symbols == NULL:
            raise MemoryError("no memory for the instrument table")

    def __dealloc__(self):
        free(self.rows)
        fh_symbols_free(self.symbols)

    # -- data plane ------------------------------------------------------------------------------------------

    cdef int decode(self, const char *payload, size_t size, uint64_t ts_recv_ns,
                    fh_batch *batch) noexcept nogil:
        """Append the events of one text frame. Returns how many, or a negative fh_error with the batch as it was.

        Every kind of message is named: data → events; ack, error, pong, heartbeat, notice → batch.control = 1;
        dropped on purpose → batch.ignored; a symbol not in the table → batch.unlisted; anything else is
        FH_ERROR_UNKNOWN. Does not depend on the order of keys."""
        return FH_ERROR_UNKNOWN

    cdef int decode_snapshot(self, const char *body, size_t size, uint32_t instrument,
                             uint64_t ts_recv_ns, fh_batch *batch) noexcept nogil:
        """Append the one FH_SNAPSHOT book event of a REST answer. Returns 1 or a negative fh_error."""
        return FH_ERROR_UNKNOWN

    cdef int chain(self, fh_chain *chain, const fh_event *event) noexcept nogil:
        """The continuity rule: an fh_verdict for this book event; on APPLY chain is moved on.

        A snapshot (event.flags & FH_SNAPSHOT) is always APPLY and seeds the chain. While chain.state is
        FH_CHAIN_WAITING a delta is never passed in."""
        chain.last = event.body.book.last
        chain.state = FH_CHAIN_LIVE
        return FH_VERDICT_APPLY

    cdef int checksum(self, const fh_book *book, const fh_event *event,
                      const fh_instrument *row) noexcept nogil:
        """1: the message's checksum matches the book after it; 0: it does not; -1: the message has none."""
        return -1

    # -- control plane ---------------------------------------------------------------------------------------

    def add_instrument(self, uint32_t id, str symbol, int price_exponent, int size_exponent):
        """Make a symbol known to the decoder. Also used to change exponents of a known one."""
        cdef bytes text = symbol.encode()
        if id >= self.row_max:
            raise VenueError(f"{self.name}: instrument id {id} is above the table's {self.row_max} rows")
        cdef fh_instrument *row = &self.rows[id]
        memset(row, 0, sizeof(fh_instrument))
        row.id = id
        row.price_exponent = price_exponent
        row.size_exponent = size_exponent
        if fh_symbols_put(self.symbols, text, len(text), id) < 0:
            raise VenueError(f"{self.name}: symbol {symbol!r} does not fit the table (1 to 48 bytes, {self.row_max} symbols)")

    def exponents(self, uint32_t id):
        """(price_exponent, size_exponent) the decoder uses for an instrument now."""
        return self.rows[id].price_exponent, self.rows[id].size_exponent

    def stream(self, symbol, channel):
        """The Stream that carries a Channel of a symbol. VenueError where the venue has none."""
        raise NotImplementedError

    def url(self, endpoint, base, streams):
        """URL to connect to; venues that take streams in the URL may add them."""
        return base

    def subscribe(self, endpoint, streams, request_id):
        """Messages (texts) that subscribe these Streams, numbered from request_id up, split at the venue's limits:
        a list of (request_id, text, streams of that message)."""
        raise NotImplementedError

    def unsubscribe(self, endpoint, streams, request_id):
        """As subscribe()."""
        raise NotImplementedError

    def on_open(self, endpoint):
        """Texts to send right after connecting (Deribit: set_heartbeat)."""
        return []

    def ping(self, endpoint, request_id):
        """Text of a client ping, or None where the venue wants none."""
        return None

    def control(self, payload):
        """What a control frame (bytes) meant: a list of Ack, Reply, Alive, Closing, Complaint."""
        return []

    def snapshot_request(self, symbol, depth):
        """RestRequest of a book snapshot (resync "rest" only)."""
        raise NotImplementedError

    def instrument_requests(self):
        """RestRequests whose answers list all instruments."""
        return []

    def instruments(self, bodies):
        """Instruments of those answers (list of bytes, in order)."""
        return []

    # -- a look inside, for tests and debugging ---------------------------------------------------------------

    def inspect(self, bytes payload, bytes behind=b"", bint accept_inexact=False, uint64_t ts_recv_ns=0):
        """What decode() makes of one text frame, as a dict.

        status: how many events, or the negative fh_error; error: its name, "" if none; control, ignored,
        unlisted: as in fh_batch; events: one dict an event. behind: the bytes that follow the frame in the
        receive buffer, which a decoder must never take for its own."""
        return self._look(payload, behind, accept_inexact, ts_recv_ns, FH_INSTRUMENT_NONE)

    def inspect_snapshot(self, bytes body, uint32_t instrument, bytes behind=b"", bint accept_inexact=False,
                         uint64_t ts_recv_ns=0):
        """The same of decode_snapshot()."""
        if instrument >= self.row_max:
            raise VenueError(f"{self.name}: instrument id {instrument} is above the table's {self.row_max} rows")
        return self._look(body, behind, accept_inexact, ts_recv_ns, instrument)

    def events(self, bytes payload):
        """The events of one text frame as dicts; prices, sizes and rates are exact Decimals, None: undefined.
        VenueError names the fh_error of a frame that has none."""
        seen = self.inspect(payload)
        if seen["error"]:
            raise VenueError(f"{self.name}: {seen['error']}: {payload[:200]!r}")
        return seen["events"]

    def chain_step(self, str state, uint64_t last, dict book, uint32_t old_run=0):
        """What chain() says of a book event (a dict of events()): (verdict, state, last), words in lower case."""
        cdef fh_chain chain
        cdef fh_event event
        memset(&event, 0, sizeof(event))
        event.kind = FH_LEVEL
        event.flags = book["flags"]
        event.sequence = book["sequence"]
        event.body.book.first = book["first"] or 0
        event.body.book.last = book["last"]
        event.body.book.prev = book["prev"] or 0
        event.body.book.has_first = book["first"] is not None
        event.body.book.has_prev = book["prev"] is not None
        event.body.book.window = book["window"]
        chain.last = last
        chain.old_run = old_run
        chain.state = CHAIN_STATES.index(state)
        verdict = self.chain(&chain, &event)
        return VERDICTS[verdict], CHAIN_STATES[chain.state], chain.last

    def checksum_step(self, uint32_t instrument, list levels, dict book):
        """What checksum() says of a book event (a dict of events()) when the book holds these levels, each
        (side, price, size) as in events(): 1 right, 0 wrong, -1 none sent."""
        cdef fh_instrument *row = &self.rows[instrument]
        cdef fh_book held
        cdef fh_event event
        memset(&event, 0, sizeof(event))
        event.instrument = instrument
        event.body.book.has_checksum = book["checksum"] is not None
        event.body.book.checksum = book["checksum"] or 0
        if fh_book_init(&held, max(1, len(levels))) != FH_OK:
            raise MemoryError("no memory for a book")
        try:
            for side, price, size in levels:
                fh_book_set(&held, FH_BID if side == "bid" else FH_ASK, int(price.scaleb(-row.price_exponent)),
                            int(size.scaleb(-row.size_exponent)))
            return self.checksum(&held, &event, row)
        finally:
            fh_book_free(&held)

    def _look(self, bytes text, bytes behind, bint accept_inexact, uint64_t ts_recv_ns, uint32_t snapshot_of):
        # A buffer of its own, exactly as long as the promise of fh_json.h: a memory checker sees a read too far.
        cdef size_t size = len(text), pad = max(FH_JSON_PAD, len(behind))
        cdef char *buffer = <char *>malloc(size + pad)
        cdef fh_batch batch
        if buffer == NULL or fh_batch_init(&batch, INSPECT_EVENT_MAX, INSPECT_CHANGE_MAX) != FH_OK:
            free(buffer)
            raise MemoryError("no memory to decode one frame")
        memset(buffer, 0, size + pad)
        memcpy(buffer, <const char *>text, size)
        memcpy(buffer + size, <const char *>behind, len(behind))
        fh_batch_clear(&batch)
        batch.accept_inexact = accept_inexact
        try:
            if snapshot_of == FH_INSTRUMENT_NONE:
                status = self.decode(buffer, size, ts_recv_ns, &batch)
            else:
                status = self.decode_snapshot(buffer, size, snapshot_of, ts_recv_ns, &batch)
            return {"status": status, "error": ERRORS.get(status, ""), "control": bool(batch.control),
                    "ignored": batch.ignored, "unlisted": batch.unlisted,
                    "events": [_event_dict(&batch, &batch.events[index], &self.rows[batch.events[index].instrument])
                               for index in range(batch.event_count)]}
        finally:
            fh_batch_free(&batch)
            free(buffer)


cdef enum:
    INSPECT_EVENT_MAX = 8192    # the largest all-market array has about 700 elements of three events
    INSPECT_CHANGE_MAX = 32768  # the largest REST snapshot has 5,000 levels a side

ERRORS = {FH_ERROR_MALFORMED: "malformed", FH_ERROR_UNKNOWN: "unknown", FH_ERROR_SYMBOL: "symbol",
          FH_ERROR_FULL: "full", FH_ERROR_DIGITS: "digits", FH_ERROR_MISSING: "missing", FH_ERROR_RANGE: "range",
          FH_ERROR_DEPTH: "depth", FH_ERROR_SYSTEM: "system"}
CHAIN_STATES = ("waiting", "seeded", "live")
VERDICTS = {FH_VERDICT_APPLY: "apply", FH_VERDICT_OLD: "old", FH_VERDICT_GAP: "gap", FH_VERDICT_AHEAD: "ahead"}
SIDES = {FH_SIDE_NONE: None, FH_BID: "bid", FH_ASK: "ask"}
WORDS = {  # the words of a record's body: name and scale (price, size, count, or real: a double)
    FH_QUOTE: ("quote", "bid_price:price bid_size:size ask_price:price ask_size:size"),
    FH_MARK: ("mark", "price:price"),
    FH_INDEX: ("index", "price:price"),
    FH_OPEN_INTEREST: ("open_interest", "size:size value:price"),
    FH_CANDLE: ("candle", "open:price high:price low:price close:price volume:size quote_volume:real "
                          "start_ns:count"),
    FH_TICKER: ("ticker", "last:price open:price high:price low:price volume:size quote_volume:real "
                          "average:real count:count"),
}


cdef object _number(int64_t mantissa, int exponent):
    return None if mantissa == FH_UNDEFINED else decimal.Decimal(mantissa).scaleb(exponent)


cdef object _real(int64_t word):
    cdef double value
    memcpy(&value, &word, sizeof(value))
    return None if isnan(value) else value


cdef dict _event_dict(const fh_batch *batch, const fh_event *event, const fh_instrument *row):
    cdef dict out = {"instrument": event.instrument, "channel": CHANNELS[event.channel], "flags": event.flags,
                     "ts_event_ns": event.ts_event_ns, "sequence": event.sequence, "slot_count": event.slot_count}
    cdef fh_record record
    memcpy(&record.body, &event.body, sizeof(record.body))
    if event.kind == FH_LEVEL:
        return out | _book_dict(batch, event, row)
    if event.kind == FH_TRADE:
        return out | {"kind": "trade", "price": _number(record.body.trade.price, row.price_exponent),
                      "size": _number(record.body.trade.size, row.size_exponent), "trade_id": record.body.trade.trade_id,
                      "aggressor": SIDES[record.body.trade.aggressor], "aggregate": bool(record.body.trade.aggregate),
                      "count": record.body.trade.count}
    if event.kind == FH_LIQUIDATION:
        return out | {"kind": "liquidation", "price": _number(record.body.liquidation.price, row.price_exponent),
                      "size": _number(record.body.liquidation.size, row.size_exponent),
                      "order_id": record.body.liquidation.order_id, "side": SIDES[record.body.liquidation.side]}
    if event.kind == FH_FUNDING:
        return out | {"kind": "funding", "rate": _number(record.body.funding.rate_e12, -12),
                      "predicted": _number(record.body.funding.predicted_e12, -12), "next_ns": record.body.funding.next_ns,
                      "interval_s": record.body.funding.interval_s}
    if event.kind == FH_GREEKS:
        names = "delta gamma vega theta rho bid_iv ask_iv mark_iv underlying rate".split()
        return out | {"kind": "greeks"} | {name: (<const double *>&event.body)[index] for index, name in enumerate(names)}
    return out | _words_dict(event, row)


cdef dict _words_dict(const fh_event *event, const fh_instrument *row):
    kind, words = WORDS[event.kind]
    cdef dict out = {"kind": kind}
    cdef dict exponents = {"price": row.price_exponent, "size": row.size_exponent}
    for index, word in enumerate(words.split()):
        name, scale = word.split(":")
        value = event.body.word[index]
        if scale == "real":
            out[name] = _real(value)
            continue
        out[name] = _number(value, exponents.get(scale, 0)) if value == FH_UNDEFINED or scale != "count" else value
    if event.kind == FH_CANDLE:
        out["count"] = event.body.word[7] & 0xffffffff
        out["interval_s"] = (event.body.word[7] >> 32) & 0x7fffffff
        out["closed"] = event.body.word[7] < 0  # FH_CANDLE_CLOSED is the sign
    return out


cdef dict _book_dict(const fh_batch *batch, const fh_event *event, const fh_instrument *row):
    cdef const fh_book_event *book = &event.body.book
    cdef const fh_change *change
    levels = []
    for index in range(book.change_begin, book.change_begin + book.change_count):
        change = &batch.changes[index]
        levels.append((SIDES[change.side], _number(change.price, row.price_exponent),
                       _number(change.size, row.size_exponent)) + ((change.order_count,) if change.order_count else ()))
    return {"kind": "book", "first": book.first if book.has_first else None, "last": book.last,
            "prev": book.prev if book.has_prev else None, "checksum": book.checksum if book.has_checksum else None,
            "window": bool(book.window), "snapshot": bool(event.flags & FH_SNAPSHOT), "levels": levels}
