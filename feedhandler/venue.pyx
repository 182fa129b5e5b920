# cython: language_level=3
"""The contract a venue fulfils, and its defaults.

A venue is one file, `feedhandler/venues/<venue>.pyx`, with one subclass of Venue. It has two halves:

Data plane (`nogil`, once per frame): decode(), decode_snapshot(), chain(), checksum().
Control plane (plain Python, once per second or connection): everything else.

All of a venue's limits are in `profiles`: one capacity profile per endpoint (URL class), as a dict in the
form described in `feedhandler/venues/README.md`.
"""
import dataclasses
import re

from libc.stdlib cimport calloc, free
from libc.string cimport memset
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
    wires: tuple = ()   # exactly these were accepted; anything else asked in that request was left out


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
    """
    name = ""
    profiles = {}
    urls = {}
    rest_url = ""
    resync = "resubscribe"

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
