"""Streams as venues send them, message by message, for tests that read one over several connections or several workers.

A Stream has COUNT messages, the same on every connection; one that begins at message n brings join(n) first, where the venue sends a
snapshot. Books walk at random from a seed, so that the same seed is the same market.
"""
import json
import random
import zlib

NOW = 1_700_000_000_000_000_000
COUNT = 24


def _book(seed, count, levels=12):
    """[(changes, book after them)] of a random walk; a change is (side, price, size), a book {(side, price): size}."""
    dice = random.Random(seed)
    book = {(side, price): dice.randint(1, 9) for side, prices in (("b", range(100 - levels, 100)), ("a", range(101, 101 + levels)))
            for price in prices}
    steps = [((), dict(book))]
    for _ in range(count):
        changes = {}
        for _ in range(dice.randint(1, 3)):
            side = dice.choice("ba")
            changes[side, dice.randint(90, 99) if side == "b" else dice.randint(102, 111)] = dice.choice((0, 0, 3, 4, 5))
        book = {key: size for key, size in (book | changes).items() if size}
        steps.append((tuple((*key, size) for key, size in changes.items()), book))
    return steps


def _rows(levels, side, price=lambda value: f"{value}.0", size=lambda value: f"{value}.00"):
    found = [(key[1], amount) for key, amount in levels if key[0] == side]
    return [[price(value), size(amount)] for value, amount in sorted(found, reverse=side == "b")]


class Stream:
    venue, symbol, snapshot, depth, channels = "binance-spot", "BTCUSDT", "", 0, ()
    book = True             # of a book
    numbered = True

    def __init__(self, seed=0):
        self.steps = _book(seed, COUNT)

    def join(self, at):
        """Messages a connection brings first whose stream begins behind message at."""
        return []

    def rest(self, at):
        return None

    def add(self, publisher, venue, instrument=0, price=-1, size=-2, private=0, lines=1):
        venue.add_instrument(instrument, self.symbol, price, size)
        for channel in self.channels * lines:
            publisher.add_stream(venue, instrument, channel, self.depth, self.snapshot if channel == "book" else "",
                                 **({"private": 1} if private else {}))

    def begin(self, publisher, venue, at=0, instrument=0):
        """Seed a book from REST, as of message at."""
        if self.snapshot == "rest":
            publisher.hold(instrument)
            assert publisher.snapshot(venue, instrument, self.rest(at), NOW) == "LIVE"


class Trades(Stream):
    channels, book = ("trade",), False

    def message(self, n):
        return {"stream": "btcusdt@trade", "data": {"e": "trade", "E": 1_700_000_000_000 + n, "s": self.symbol, "t": 1000 + n, "p": f"{90 + n}.0",
                "q": f"{n % 7 + 1}.00", "T": 1_700_000_000_000 + n, "m": True, "M": True}}


class Quotes(Stream):
    channels, book = ("quote",), False

    def message(self, n):
        return {"stream": "btcusdt@bookTicker", "data": {"u": 1000 + 3 * n, "s": self.symbol, "b": f"{90 + n}.0", "B": "1.00", "a": f"{95 + n}.0", "A": "2.00"}}


class Marks(Stream):
    """Mark, index and funding of one message, told apart by time alone; two messages share each time."""
    venue, channels, book, numbered = "binance-usdm", ("mark", "index", "funding"), False, False
    together = 1

    def message(self, n):
        return {"stream": "btcusdt@markPrice@1s", "data": {"e": "markPriceUpdate", "E": 1_700_000_000_000 + 1000 * (n // self.together), "s": self.symbol,
                "p": f"{100 + n}.0", "i": f"{101 + n}.0", "P": "100.0", "r": f"0.0001{n:02}", "T": 1_700_000_000_000}}


class Deltas(Stream):
    """A book by U and u behind a REST snapshot."""
    snapshot, channels = "rest", ("book",)

    def message(self, n):
        changes = self.steps[n][0]
        return {"stream": "btcusdt@depth@100ms", "data": {"e": "depthUpdate", "E": 1_700_000_000_000 + n, "s": self.symbol, "U": 1000 + 2 * n - 1,
                "u": 1000 + 2 * n, **{side: [[f"{price}.0", f"{size}.00"] for which, price, size in changes if which == side] for side in "ba"}}}

    def rest(self, at):
        levels = self.steps[at][1].items()
        return json.dumps({"lastUpdateId": 1000 + 2 * at, "bids": _rows(levels, "b"), "asks": _rows(levels, "a")}).encode()


class Chained(Stream):
    """A book by seqId and prevSeqId, its snapshot in band."""
    venue, symbol, snapshot, channels = "okx", "BTC-USDT", "in_band", ("book",)

    def message(self, n, action="update"):
        changes = [((side, price), size) for side, price, size in self.steps[n][0]] if action == "update" else self.steps[n][1].items()
        asks, bids = (_rows(changes, side) for side in "ab")
        return {"arg": {"channel": "books", "instId": self.symbol}, "action": action, "data": [{
            "asks": [[*row, "0", "1"] for row in asks], "bids": [[*row, "0", "1"] for row in bids], "ts": str(1_700_000_000_000 + n), "checksum": 0,
            "seqId": 500 + 3 * n, "prevSeqId": 500 + 3 * (n - 1) if action == "update" else -1}]}

    def join(self, at):
        return [self.message(at, "snapshot")]


class Windows(Stream):
    """A book whose every message is whole, and numbered."""
    venue, symbol, snapshot, depth, channels = "okx", "BTC-USDT", "window", 5, ("book",)

    def message(self, n):
        asks, bids = (_rows(self.steps[n][1].items(), side)[:5] for side in "ab")
        return {"arg": {"channel": "books5", "instId": self.symbol}, "data": [{
            "asks": [[*row, "0", "1"] for row in asks], "bids": [[*row, "0", "1"] for row in bids], "ts": str(1_700_000_000_000 + n), "instId": self.symbol,
            "seqId": 500 + 3 * n}]}


class Checked(Stream):
    """A book without numbers, with a checksum and a time; its snapshot in band. together: messages that share one time."""
    venue, symbol, snapshot, depth, channels, numbered = "kraken", "BTC/USD", "in_band", 1000, ("book",), False
    together = 1

    def message(self, n, kind="update"):
        changes = [((side, price), size) for side, price, size in self.steps[n][0]] if kind == "update" else self.steps[n][1].items()
        rows = {side: ",".join(f'{{"price":{price},"qty":{size}}}' for price, size in _rows(changes, side)) for side in "ba"}
        after = self.steps[n][1].items()
        tops = _rows(after, "a")[:10] + _rows(after, "b")[:10]
        checksum = zlib.crc32("".join(value.replace(".", "").lstrip("0") for row in tops for value in row).encode())
        second, part = divmod(n // self.together, 1000)
        return (f'{{"channel":"book","type":"{kind}","data":[{{"symbol":"{self.symbol}","bids":[{rows["b"]}],"asks":[{rows["a"]}],'
                f'"checksum":{checksum},"timestamp":"2026-08-24T22:21:{second + 10:02}.{part:03}000Z"}}]}}').encode()

    def join(self, at):
        return [self.message(at, "snapshot")]


class CheckedTogether(Checked):
    together = 3


class MarksTogether(Marks):
    together = 2


ALL = (Trades, Quotes, Marks, MarksTogether, Deltas, Chained, Windows, Checked, CheckedTogether)


def text(message):
    return message if isinstance(message, bytes) else json.dumps(message).encode()
