"""What a correct receiver must end with, in the document form of `feedhandler verify`.

While the market runs only segments are noted: from which position to which a stream was sent to a connection,
and what a fault took out of it. Everything else is computed at the end, with slow Decimal books of its own.

A field stands in the document only when it is exact, so that `verify --expect` can take the document as it is;
what was left out, and where each book stands, is under "oracle". Final books, trades and quotes are exact unless a fault or a lost connection
touched them. The path of the best prices is exact for in-band books; for books that start from REST it is exact
when the simulator keeps the instrument still around the snapshot (snapshot_pause_s), since otherwise the
client's timing decides which updates its first step contains.
"""
import dataclasses
import decimal
import hashlib

from feedhandler.simulate.market import ASK, BID

TOP = 20
DAMAGE = ("drop", "reorder", "corrupt", "malformed", "oversize", "masked", "bad_utf8", "rsv", "duplicate")
LOST = ("drop", "corrupt", "malformed")     # the receiver has nothing of such a frame
SEGMENTS_MAX = 100_000


@dataclasses.dataclass(slots=True, eq=False)
class Segment:
    """Positions [start, end) of one stream went to one connection; `lost` of them did not arrive whole."""
    stream: object
    start: int
    end: int | None = None
    broken: bool = False        # the connection died: its last frames may not have arrived
    lost: list = dataclasses.field(default_factory=list)
    damaged: bool = False
    initial: bool = False       # a snapshot or first value was sent at the start


def canonical(value):
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


class SlowBook:
    """A book in Decimals, from the texts the venue prints."""

    def __init__(self, instrument, depth):
        self.instrument = instrument
        self.depth = depth
        self.sides = ({}, {})
        for side in (BID, ASK):
            for price, size in instrument.initial[side].items():
                self.set(side, price, size)

    def set(self, side, price, size):
        price = decimal.Decimal(self.instrument.price_text(price))
        size = decimal.Decimal(self.instrument.size_text(size))
        if size:
            self.sides[side][price] = size
        else:
            self.sides[side].pop(price, None)

    def apply(self, levels):
        for side, price, size in levels:
            self.set(side, price, size)

    def rows(self, side):
        rows = sorted(self.sides[side].items(), reverse=side == BID)
        return [[canonical(price), canonical(size)] for price, size in (rows[:self.depth] if self.depth else rows)]

    def touch(self):
        parts = []
        for side, best in ((BID, max), (ASK, min)):
            price = best(self.sides[side], default=None)
            parts += ["-", "-"] if price is None else [canonical(price), canonical(self.sides[side][price])]
        return " ".join(parts)


class Digest:
    """SHA-256 over lines, and how many there were."""

    def __init__(self):
        self.hash = hashlib.sha256()
        self.count = 0
        self.previous = None

    def add(self, line):
        self.hash.update(line.encode() + b"\n")
        self.count += 1

    def change(self, line):
        if line != self.previous:
            self.previous = line
            self.add(line)


class Oracle:
    """Notes segments while sending; document() does the work."""

    def __init__(self, simulator):
        self.simulator = simulator
        self.segments = {}          # (venue, symbol, channel) -> [Segment]
        self.open = {}              # (connection, wire) -> Segment
        self.segment_count = 0
        self.segments_dropped = 0

    def opened(self, connection, stream, initial):
        if stream.instrument is None or stream.slow or stream.render is None:
            return
        if self.segment_count >= SEGMENTS_MAX:
            self.segments_dropped += 1
            return
        segment = Segment(stream, stream.instrument.position, initial=initial)
        self.segment_count += 1
        self.open[connection, stream.wire] = segment
        self.segments.setdefault((connection.side.name, stream.instrument.symbol, stream.channel), []).append(segment)

    def closed(self, connection, stream, broken):
        segment = self.open.pop((connection, stream.wire), None)
        if segment:
            segment.end = stream.instrument.position
            segment.broken = broken

    def disturbed(self, connection, stream, position, kind):
        segment = self.open.get((connection, stream.wire))
        if segment and kind in DAMAGE:
            segment.damaged = True
            if kind in LOST:
                segment.lost.append(position)

    # -- the document ----------------------------------------------------------------------------------------
    def document(self, venue):
        """{"books": …, "trades": …, "bbo": …} of one venue, as `verify` prints it; "oracle" says what is exact."""
        document = {"books": {}, "trades": {}, "bbo": {}, "oracle": {"books": {}, "trades": {}, "bbo": {}}}
        for (name, symbol, channel), segments in sorted(self.segments.items()):
            if name != venue:
                continue
            if channel == "book":
                section, digest = "books", self.book(segments)
            elif channel == "trade" or channel == "agg_trade" and (name, symbol, "trade") not in self.segments:
                section, digest = "trades", self.trades(segments)
            elif channel == "quote":
                section, digest = "bbo", self.quotes(segments)
            else:
                continue
            document[section][symbol], document["oracle"][section][symbol] = digest
        return document

    def ends(self, segment):
        return segment.end if segment.end is not None else segment.stream.instrument.position

    def book(self, segments):
        instrument, depth = segments[0].stream.instrument, segments[0].stream.depth
        rest = self.simulator.sides[instrument.venue].rest_book
        final = SlowBook(instrument, depth)
        end = max(self.ends(segment) for segment in segments)
        for event in instrument.loop[:end % len(instrument.loop)]:
            final.apply(event.levels)
        bids, asks = final.rows(BID), final.rows(ASK)
        lines = "".join(f"{price} {size}\n" for price, size in bids) + "\n" + "".join(f"{price} {size}\n" for price, size in asks) + "\n"
        digest = self.rest_path(instrument, segments, depth) if rest else self.path(instrument, segments, depth)
        damaged = any(segment.damaged or segment.broken for segment in segments)
        still = not rest or self.simulator.config.snapshot_pause_s > 0 and len(instrument.snapshots) == 1
        exact = {"l1": still and not damaged, "final": not damaged or self.healed(instrument, segments)}
        path = {"l1_changes": digest.count, "l1_sha256": digest.hash.hexdigest()}
        book = {"bids": bids[:TOP], "asks": asks[:TOP], "levels": [len(bids), len(asks)], "all_sha256": hashlib.sha256(lines.encode()).hexdigest()}
        document = {"state": "live", "crossed": 0, **(path if exact["l1"] else {}), **(book if exact["final"] else {})}
        return document, {"position": end, "exact": exact, **path}

    def healed(self, instrument, segments):
        """A damaged stream that was subscribed again afterwards, or seeded again, ends with the right book."""
        last = max(segments, key=lambda segment: segment.start)
        lost = [position for segment in segments for position in segment.lost]
        seeded = any(position > max(lost, default=0) for position, extra, sequence in instrument.snapshots)
        return not last.damaged or seeded

    def touches(self, instrument, depth):
        """The touch line after each event of the loop; at index -1 that of the first book."""
        book, lines = SlowBook(instrument, depth), []
        for event in instrument.loop:
            book.apply(event.levels)
            lines.append(book.touch())
        return lines

    def path(self, instrument, segments, depth):
        """In-band: each segment begins with a snapshot and counts up to its first lost update."""
        lines, digest, covered = self.touches(instrument, depth), Digest(), -1
        count = len(lines)
        for segment in sorted(segments, key=lambda segment: segment.start):
            stop = min(segment.lost, default=self.ends(segment))
            if segment.start > covered:
                digest.change(lines[segment.start % count - 1])
                covered = segment.start
            for position in range(covered, stop):
                digest.change(lines[position % count])
            covered = max(covered, stop)
        return digest

    def rest_path(self, instrument, segments, depth):
        """From the snapshot served last: its own touch, then every event behind it."""
        digest = Digest()
        if not instrument.snapshots:
            return digest
        lines = self.touches(instrument, depth)
        start, extra, sequence = instrument.snapshots[-1]
        book = SlowBook(instrument, depth)
        for event in instrument.loop[:start % len(lines)]:
            book.apply(event.levels)
        book.apply(instrument.loop[start % len(lines)].levels[:extra])
        digest.change(book.touch())
        for position in range(start, max(self.ends(segment) for segment in segments)):
            digest.change(lines[position % len(lines)])
        return digest

    def positions(self, segments):
        """Every position that reached a receiver once, in order, and those at which a first value was sent."""
        covered = -1
        for segment in sorted(segments, key=lambda segment: segment.start):
            if segment.initial and segment.start > covered:
                yield segment.start, True
            lost = set(segment.lost)
            for position in range(max(covered, segment.start), self.ends(segment)):
                if position not in lost:
                    yield position, False
            covered = max(covered, self.ends(segment))

    def trades(self, segments):
        instrument, digest = segments[0].stream.instrument, Digest()
        lines = [event.trade and self.trade_line(instrument, event.trade) for event in instrument.loop]
        for position, initial in self.positions(segments):
            if lines[position % len(lines)] and not initial:
                digest.add(lines[position % len(lines)])
        return self.counted(digest, segments)

    def counted(self, digest, segments):
        exact = not any(segment.broken or segment.damaged and not segment.lost for segment in segments)
        values = {"n": digest.count, "sha256": digest.hash.hexdigest()}
        return (values if exact else {}), {"exact": exact, **values}

    def trade_line(self, instrument, trade):
        price, size, taker = trade
        return (f"{canonical(decimal.Decimal(instrument.price_text(price)))} {canonical(decimal.Decimal(instrument.size_text(size)))} "
                f"{'B' if taker == BID else 'S'}")

    def quotes(self, segments):
        instrument, digest = segments[0].stream.instrument, Digest()
        lines = self.touches(instrument, 0)
        for position, initial in self.positions(segments):
            if initial:
                digest.add(lines[position % len(lines) - 1])
            elif instrument.loop[position % len(lines)].touch_moved:
                digest.add(lines[position % len(lines)])
        return self.counted(digest, segments)
