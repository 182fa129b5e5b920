"""The other side of a venue: what all simulated venues have in common.

A Side answers one venue's protocol: connect, subscribe, snapshots, heartbeats, REST, limits and punishments.
It knows no socket: a connection is given to it with text(), ping() and close(). A Stream is one wire name of
the venue and the function that renders its frames. Written from the venues' documents alone; nothing of the
product's own decoders is used, so that the two can disagree.
"""
import dataclasses
import json
import re

from feedhandler.simulate import limits
from feedhandler.simulate.market import ASK, BID, apply

MINUTE_MS = 60_000


@dataclasses.dataclass(slots=True)
class Reply:
    """An HTTP answer."""
    body: bytes
    status: int = 200
    headers: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(slots=True, eq=False)
class Stream:
    """One wire name. render(index, cycle, now_ms) gives the frame of an event, or None if it has none here.

    A slow stream follows the clock instead: render(position, second, now_ms), once a second."""
    endpoint: str
    wire: str
    channel: str            # trade, quote, book, window, or the name of a slow channel
    instrument: object = None
    render: object = None
    snapshot: object = None # snapshot(position, now_ms) -> frames sent right after the ack
    slow: bool = False
    depth: int = 0
    prefix_size: int = 0    # bytes of the combined wrapper, taken off on raw connections
    family: tuple = ()      # what a recorded frame is matched by
    connections: list = dataclasses.field(default_factory=list)
    faults: list = dataclasses.field(default_factory=list)


def compact(value):
    return json.dumps(value, separators=(",", ":")).encode()


def windows(instrument, depth):
    """(event, bids, asks) for each event of the loop, best first, at most `depth` a side, as (price, size)."""
    sides = (dict(instrument.initial[BID]), dict(instrument.initial[ASK]))
    for event in instrument.loop:
        apply(sides, event.levels)
        yield event, sorted(sides[BID].items(), reverse=True)[:depth], sorted(sides[ASK].items())[:depth]


class Candle:
    """A candle that follows the touch: enough for a slow channel."""

    def __init__(self):
        self.start_ms = 0

    def move(self, price, now_ms, interval_ms=MINUTE_MS):
        start_ms = now_ms - now_ms % interval_ms
        if start_ms != self.start_ms:
            self.start_ms, self.open, self.high, self.low, self.count = start_ms, price, price, price, 0
        self.high, self.low, self.close = max(self.high, price), min(self.low, price), price
        self.count += 1
        return self


INTERVALS_MS = {"1m": 60_000, "3m": 180_000, "5m": 300_000, "15m": 900_000, "1h": 3_600_000, "1H": 3_600_000,
                "4h": 14_400_000, "4H": 14_400_000, "1d": 86_400_000, "1D": 86_400_000}


class Side:
    """Base of every simulated venue.

    name, paths {endpoint: URL path below /<name>}, contiguous (update ids of a book follow each other),
    checksum (a flipped digit is noticed by the receiver), rest_book (the book starts from REST)."""
    name = ""
    paths = {}
    contiguous = True
    checksum = False
    rest_book = False

    def __init__(self, simulator, options):
        self.simulator = simulator
        self.options = options
        self.instruments = {}
        self.streams = {}           # (endpoint, wire) -> Stream
        self.ban = limits.Ban()
        self.rest_recorded = []     # (URL path, query, body) from a capture

    def meter(self, name, limit):
        return self.simulator.usage.meter(f"{self.name}: {name}", limit)

    # -- what a venue overrides ------------------------------------------------------------------------------
    def listing(self, count):
        """Make `count` instruments, without their loops."""
        raise NotImplementedError

    def admit(self, now):
        """None to accept a connection attempt, or the Reply that refuses it."""
        return None

    def connected(self, connection):
        """The WebSocket is open."""

    def left(self, connection):
        """The WebSocket is gone."""

    def received(self, connection, text):
        """A text frame came."""

    def control(self, connection, kind, payload):
        """A ping or pong frame came; pings were already answered."""

    def tick(self, connection, now):
        """Called ten times a second for each connection."""

    def shutdown_notice(self, connection):
        """Tell the client that the connection will soon be closed."""

    def slow_reader(self, connection):
        """The client's backlog is above the maximum: the venue's punishment."""
        connection.close(1008, "Slow consumer")

    def make_stream(self, endpoint, wire):
        """The Stream of a wire name, or None if there is none: the venue then stays silent, or says so."""
        raise NotImplementedError

    def family(self, payload):
        """Of a recorded frame: (kind, symbol) of the stream it belongs to; None for control messages."""
        raise NotImplementedError

    def rest(self, path, query, now):
        """Answer a GET below the venue's REST base. May return an awaitable."""
        raise NotImplementedError

    def adopt(self, symbol, price_digits, size_digits):
        """Make an instrument for a symbol of a capture that has no instrument list."""
        raise NotImplementedError

    # -- shared ----------------------------------------------------------------------------------------------
    def stream(self, endpoint, wire):
        key = endpoint, wire
        if key not in self.streams:
            made = self.make_stream(endpoint, wire)
            if made is None:
                return None
            self.streams[key] = made
        return self.streams[key]

    def recorded(self, path, query):
        """The recorded body whose path is the same and whose query is part of the one asked, or None."""
        best = None
        for recorded_path, recorded_query, body in self.rest_recorded:
            if recorded_path.rstrip("/") == path.rstrip("/") and recorded_query.items() <= query.items():
                best = body
        return best


def decimals(text):
    """Digits behind the point that carry a value in a decimal text."""
    return len(text.partition(".")[2].rstrip("0"))


def split_symbol(symbol, quotes=("USDT", "USDC", "BUSD", "BTC", "ETH", "BNB", "EUR", "USD")):
    """Base and quote of a symbol written without a separator."""
    for quote in quotes:
        if symbol.endswith(quote) and symbol != quote:
            return symbol[:-len(quote)], quote
    return symbol, ""


def safe_json(text):
    """The value of a JSON text, or None."""
    try:
        return json.loads(text)
    except ValueError:
        return None


IDENTIFIER = re.compile(r"[0-9A-Za-z]{1,32}")
