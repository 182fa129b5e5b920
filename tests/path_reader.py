"""A strategy in a process of its own: reads an instance to its end and writes what it read.

    python path_reader.py NAME OUT [rebase]

Attaches as soon as the instance is there, prints `attached`, feeds every record to one digest a ring, and at the end
of its standard input prints one JSON line: documents, lost, records by ring, last quotes and books.
"""
import json
import math
import sys
import threading
import time

import feedhandler
from feedhandler.digest import Digest


def attach(name, seconds=30):
    end = time.monotonic() + seconds
    while True:
        try:
            return feedhandler.attach(name, reader_name="path")
        except (feedhandler.FeedError, ValueError):
            if time.monotonic() > end:
                raise
            time.sleep(0.002)


class Rings:
    """A Digest for each ring; instruments are told to it with the exponents of their first record."""

    def __init__(self, feed):
        self.feed, self.digests, self.records, self.lost = feed, {}, 0, {}
        self.listed = 0

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
            self.lost[batch.ring] = self.lost.get(batch.ring, 0) + batch.lost
            self.digests.pop(batch.ring, None)
        if len(batch) == 0 or int(batch.position[0]) == 0:   # nothing, or the reader's own word about a silent worker
            return
        digest = self.of(batch.ring)
        rows = batch.records.tobytes()
        assert batch.valid(), "overwritten while it was read"
        digest.feed(rows)
        self.records += len(batch)


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
    for digest in rings.digests.values():
        for part, found in digest.document().items():
            documents[part].update(found)
    tops = {f"{row.venue} {row.symbol}": [[[str(price), str(size)] for price, size in side] for side in (book.bids, book.asks)]
            for row in feed.instruments if (book := feed.book(row)) is not None}
    print(json.dumps({"document": documents, "lost": feed.lost, "records": rings.records, "tops": tops,
                      "positions": {ring: digest.position for ring, digest in rings.digests.items()}}), flush=True)


main(sys.argv[1])
