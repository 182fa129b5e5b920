"""Digests of published records: what `feedhandler verify` compares, computed from the ring's bytes alone.

Feed a Digest the records of one or more instruments, in ring order, as 64-byte rows; ask for its document.
A record is understood at the exponents that hold where it stands: those an instrument was added with, then those
of each INSTRUMENT_CHANGED.
"""
import hashlib
import struct

RECORD = struct.Struct("<QQQIBBHqqqq")  # commit, ts_recv, ts_event, instrument, kind, flags, session, body
STATUS = struct.Struct("<IIqqq")        # the same body of a STATUS record: code, detail, a, b, c
BODY = struct.Struct("<qqqq")

UNDEFINED = -(1 << 63)
TOP = 20
TRADE, QUOTE, TOUCH, LEVEL, STATUS_KIND = 1, 2, 3, 4, 32
LAST, RESET = 1, 4
BID, ASK = 1, 2
GAP, LIVE, EPOCH, INSTRUMENT_CHANGED = 1, 4, 7, 12
BOOK_CHANNEL = 3
SIDES = {BID: "B", ASK: "S"}


class DigestError(ValueError):
    """Records that contradict each other: the ring, the reader or the publisher is wrong."""


def canonical(mantissa, exponent):
    """mantissa * 10^exponent (exponent <= 0) as decimal text: no exponent, no trailing zeros, no trailing point."""
    if exponent == 0:
        return str(mantissa)
    digits = str(abs(mantissa)).rjust(1 - exponent, "0")
    fraction = digits[exponent:].rstrip("0")
    sign = "-" if mantissa < 0 else ""
    return f"{sign}{digits[:exponent]}.{fraction}" if fraction else sign + digits[:exponent]


class Instrument:
    """What the records of one instrument have said so far."""

    def __init__(self, symbol, price_exponent, size_exponent):
        self.symbol = symbol
        self.price_exponent, self.size_exponent = price_exponent, size_exponent
        self.bids, self.asks = {}, {}
        self.has_book = False
        self.state = "waiting"
        self.gaps = self.events = 0
        self.l1, self.l1_changes, self.l1_hash = None, 0, hashlib.sha256()
        self.trades, self.trade_hash = 0, hashlib.sha256()
        self.quotes, self.quote_hash = 0, hashlib.sha256()

    def price(self, mantissa):
        return canonical(mantissa, self.price_exponent)

    def size(self, mantissa):
        return canonical(mantissa, self.size_exponent)

    def touch_text(self, words):
        """"bidpx bidqty askpx askqty", "-" for an empty side."""
        bid = f"{self.price(words[0])} {self.size(words[1])}" if words[0] != UNDEFINED else "- -"
        ask = f"{self.price(words[2])} {self.size(words[3])}" if words[2] != UNDEFINED else "- -"
        return f"{bid} {ask}\n"

    def touch(self, words):
        text = self.touch_text(words)
        if text != self.l1:
            self.l1 = text
            self.l1_changes += 1
            self.l1_hash.update(text.encode())

    def trade(self, words):
        self.trades += 1
        side = SIDES.get(words[3] & 0xff, "-")
        self.trade_hash.update(f"{self.price(words[0])} {self.size(words[1])} {side}\n".encode())

    def quote(self, words):
        self.quotes += 1
        self.quote_hash.update(self.touch_text(words).encode())

    def level(self, words, flags):
        self.has_book = True
        if flags & RESET:
            self.bids.clear()
            self.asks.clear()
            self.state = "live"
        if self.state == "gap":
            raise DigestError(f"{self.symbol}: a LEVEL record follows GAP without RESET")
        levels = self.bids if words[3] & 0xff == BID else self.asks
        if words[1] == 0:
            levels.pop(words[0], None)
        elif words[0] != UNDEFINED:
            levels[words[0]] = words[1]
        if flags & LAST:
            self.events += 1

    def gap(self):
        self.has_book = True
        self.state = "gap"
        self.gaps += 1
        self.bids.clear()
        self.asks.clear()

    def changed(self, price_exponent, size_exponent):
        price, size = 10 ** (self.price_exponent - price_exponent), 10 ** (self.size_exponent - size_exponent)
        self.price_exponent, self.size_exponent = price_exponent, size_exponent
        for levels in (self.bids, self.asks):
            scaled = {key * price: value * size for key, value in levels.items()}
            levels.clear()
            levels.update(scaled)

    def book(self):
        """The document of its book, as far as records tell it."""
        bids = [[self.price(key), self.size(self.bids[key])] for key in sorted(self.bids, reverse=True)]
        asks = [[self.price(key), self.size(self.asks[key])] for key in sorted(self.asks)]
        lines = hashlib.sha256()
        for side in (bids, asks):
            lines.update("".join(f"{price} {size}\n" for price, size in side).encode() + b"\n")
        return {"state": self.state, "gaps": self.gaps, "l1_changes": self.l1_changes, "l1_sha256": self.l1_hash.hexdigest(),
                "levels": [len(bids), len(asks)], "all_sha256": lines.hexdigest(), "bids": bids[:TOP], "asks": asks[:TOP]}


class Digest:
    """Records in, document out. Instruments are told with add(); a record of another one is an error."""

    def __init__(self):
        self.instruments = {}
        self.position = None
        self.records = 0

    def add(self, instrument, symbol, price_exponent, size_exponent):
        self.instruments[instrument] = Instrument(symbol, price_exponent, size_exponent)

    def feed(self, rows):
        """rows: bytes of consecutive records of one ring. Checks that none is missing or torn."""
        for commit, _, _, instrument, kind, flags, _, *words in RECORD.iter_unpack(rows):
            if self.position is not None and commit != self.position + 1:
                raise DigestError(f"position {self.position}: the commit word is {commit}, expected {self.position + 1}")
            self.position = commit
            self.records += 1
            if kind == LEVEL:
                self.instruments[instrument].level(words, flags)
            elif kind == TOUCH:
                self.instruments[instrument].touch(words)
            elif kind == QUOTE:
                self.instruments[instrument].quote(words)
            elif kind == TRADE:
                self.instruments[instrument].trade(words)
            elif kind == STATUS_KIND and instrument in self.instruments:
                self._status(self.instruments[instrument], words)

    def _status(self, instrument, words):
        code, detail, a, b, _ = STATUS.unpack(BODY.pack(*words))
        if code == GAP and detail == BOOK_CHANNEL:
            instrument.gap()
        elif code == INSTRUMENT_CHANGED:
            instrument.changed(a, b)

    def document(self):
        """books, trades and bbo by symbol, as verify.md has them; counts that no record tells are not in it."""
        seen = sorted(self.instruments.values(), key=lambda instrument: instrument.symbol)
        return {
            "books": {one.symbol: one.book() for one in seen if one.has_book},
            "trades": {one.symbol: {"n": one.trades, "sha256": one.trade_hash.hexdigest()} for one in seen if one.trades},
            "bbo": {one.symbol: {"n": one.quotes, "sha256": one.quote_hash.hexdigest()} for one in seen if one.quotes},
        }
