"""A strategy in a process of its own: reads an instance to its end and writes what it read.

    python path_reader.py NAME

Attaches as soon as the instance is there, prints `attached`, feeds every record to one digest a ring, and at the end
of its standard input prints one JSON line of what it read. After a loss it goes on from the last values (rebase), without digests.
"""
import json
import math
import sys
import threading
import time

import numpy

import feedhandler
from feedhandler.digest import Digest, canonical

BLOCK = 64                   # rows of one block sum
TRADE, TOUCH, STATUS = 1, 3, 32
WEIGHTS = numpy.array([3, 5, 7, 11, 13, 17, 19, 23], "u8") * 0x9E3779B97F4A7C15


def attach(name, reader_name="path", seconds=30):
    end = time.monotonic() + seconds
    while True:
        try:
            return feedhandler.attach(name, reader_name=reader_name)
        except (feedhandler.FeedError, ValueError):
            if time.monotonic() > end:
                raise
            time.sleep(0.002)


class Rings:
    """A Digest for each ring; instruments are told to it with the exponents of their first record."""

    def __init__(self, feed):
        self.feed, self.digests, self.records, self.skipped = feed, {}, 0, 0
        self.listed = 0
        self.blocks = {}             # ring -> {block of positions: [rows, sum]}
        self.totals = {"data": [0, 0], "trades": [0, 0]}     # [rows, sum], as tests/c/count_trades.c has them
        self.end, self.touch = {}, {}
        self.seed()

    def seed(self):
        """Last values as `state` has them: what records below their position said is in them."""
        self.since = {}
        for row in self.feed.instruments:
            last = self.feed.quote(row)
            if last is not None and last.status == "LIVE":
                self.touch[row.id] = [last.bid_price, last.bid_size, last.ask_price, last.ask_size]
                self.since[row.id] = last.position

    def of(self, ring):
        if ring not in self.digests:
            self.digests[ring] = Digest()
            self.listed = 0
        if len(self.feed.instruments) != self.listed:
            self.listed = len(self.feed.instruments)
            for row in self.feed.instruments:
                for digest in self.digests.values():
                    if row.id not in digest.instruments:
                        digest.add(row.id, f"{row.venue} {row.symbol}", *(round(math.log10(scale[row.id])) for scale in (
                            self.feed.price_scale, self.feed.size_scale)))
        return self.digests[ring]

    def take(self, batch):
        if batch.lost:
            self.digests = None
            self.skipped += self.feed.rebase()
            self.seed()
        if len(batch) == 0 or int(batch.position[0]) == 0:   # nothing, or the reader's own word about a silent worker
            return
        rows = batch.records.tobytes()
        if not batch.valid():        # we were stopped with them in hand
            self.digests, self.skipped = None, self.skipped + len(batch)
            return
        rows = numpy.frombuffer(rows, batch.records.dtype)
        if self.digests is not None:
            self.of(batch.ring).feed(rows.tobytes())
        self.records += len(rows)
        self.end[batch.ring] = int(rows["position"][-1])
        self.sum(self.blocks.setdefault(batch.ring, {}), rows)
        for row in rows[rows["kind"] == TOUCH]:
            id = int(row["instrument"])
            if row["position"] > self.since.get(id, 0):
                price, size = self.feed.price_scale[id], self.feed.size_scale[id]
                self.touch[id] = [(int(row[name]), scale) for name, scale in (
                    ("bid_price", price), ("bid_size", size), ("ask_price", price), ("ask_size", size))]

    def sum(self, blocks, rows):
        sums = (rows.view("<u8").reshape(-1, 8) * WEIGHTS).sum(axis=1, dtype="u8")
        for name, wanted in (("data", rows["kind"] != STATUS), ("trades", rows["kind"] == TRADE)):
            self.add(self.totals[name], wanted.sum(), sums[wanted].sum(dtype="u8"))
        numbers, first, counts = numpy.unique((rows["position"] - 1) // BLOCK, return_index=True, return_counts=True)
        for number, count, total in zip(numbers.tolist(), counts, numpy.add.reduceat(sums, first)):
            self.add(blocks.setdefault(number, [0, 0]), count, total)

    def add(self, total, count, value):
        total[:] = total[0] + int(count), (total[1] + int(value)) % 2**64

    def touches(self):
        """{venue symbol: bid, bid size, ask, ask size} as texts, from records where there were any."""
        found = {}
        for id, values in self.touch.items():
            row = self.feed.instrument_at(id)
            found[f"{row.venue} {row.symbol}"] = [canonical(value[0], round(math.log10(value[1]))) if isinstance(value, tuple) else
                                                  None if value is None else canonical(*exact(value)) for value in values]
        return found


def exact(value):
    """(mantissa, exponent) of a Decimal."""
    sign, digits, exponent = value.as_tuple()
    mantissa = int("".join(map(str, digits)))
    return (-mantissa if sign else mantissa) * 10 ** max(exponent, 0), min(exponent, 0)


def main(name):
    feed = attach(name)
    rings = Rings(feed)
    print("attached", flush=True)
    over = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    while True:
        ending = over.is_set()
        batch = feed.poll(timeout=0.05)
        rings.take(batch)
        if ending and len(batch) == 0 and not batch.lost:
            break
    documents = {"books": {}, "trades": {}, "bbo": {}}
    for digest in (rings.digests or {}).values():
        for part, found in digest.document().items():
            documents[part].update(found)
    tops = {f"{row.venue} {row.symbol}": [[[str(price), str(size)] for price, size in side] for side in (book.bids, book.asks)]
            for row in feed.instruments if (book := feed.book(row)) is not None}
    blocks = {ring: {number: total for number, (count, total) in found.items() if count == BLOCK} for ring, found in rings.blocks.items()}
    print(json.dumps({"document": documents, "lost": feed.lost, "skipped": rings.skipped, "records": rings.records, "tops": tops,
                      "touches": rings.touches(), "end": rings.end, "blocks": blocks, **rings.totals}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
