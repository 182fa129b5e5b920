"""A recorded capture through venue, book and ring, as fast as it goes, and one document of what came out.

    capture → Venue.decode → Publisher → a private ring → records read back → digest

The ring lives in a directory of its own, removed afterwards. Instruments are learnt on the way: from instrument
lists in the capture, else from the first frame that names a symbol. Nothing of a capture is skipped unseen: the
document's `accounting` says what became of every record.
"""
import json
import mmap
import os
import re
import shutil
import tempfile
import urllib.parse
import zlib

from feedhandler import venues
from feedhandler.capture import Capture
from feedhandler.digest import Digest, canonical
from feedhandler.venue import CHANNELS, Channel, VenueError
from feedhandler.worker.publisher import Publisher

SLOT_COUNT = 1 << 16        # 4 MiB; a quarter holds a snapshot of 8,192 levels a side in one piece
RING_HEADER_SIZE = 4096
SLOT_SIZE = 64
ROW_MAX = 4096              # symbols of one capture
LEVEL_MAX = 20_000          # levels a side: the largest recorded book has 4,272
QUOTES_KEPT = 65_536        # quotes of one symbol that a later book state may still carry the id of
NOTES_KEPT = 20
INFLATE_SIZE_MAX = 16 << 20
PROGRESS_EVERY = 2048       # records between two calls of progress
ERROR_UNKNOWN, ERROR_SYMBOL = -2, -3
KIND_QUOTE = 2
NOTICE_GAP, NOTICE_PENDING_FULL = 2, 6
COMPARED = ("books", "trades", "bbo")


class VerifyError(ValueError):
    """A capture that this venue cannot be verified with; the text says where and why."""


def verify(path, venue_name, progress=None):
    """The document of a capture. progress, if given, is called with (bytes done, bytes in all) now and then."""
    directory = tempfile.mkdtemp(prefix="feedhandler-verify-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
    try:
        with Capture(path) as capture:
            replay = Replay(venues.load(venue_name, ROW_MAX), directory)
            try:
                for count, record in enumerate(capture, 1):
                    replay.record(record)
                    if progress and count % PROGRESS_EVERY == 0:
                        progress(capture.done, capture.total)
                if progress:
                    progress(capture.total, capture.total)
                return replay.document()
            finally:
                replay.close()
    finally:
        shutil.rmtree(directory)


class Replay:
    """One venue, one publisher, one private ring, and what is known of the capture so far."""

    def __init__(self, venue, directory):
        self.venue = venue
        self.digest = Digest()
        directory_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self.publisher = Publisher(directory_fd, 0, SLOT_COUNT, ROW_MAX, LEVEL_MAX)
        finally:
            os.close(directory_fd)
        with open(os.path.join(directory, "worker-0.ring"), "rb") as file:
            self.ring = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        self.position = self.publisher.position
        self.symbols = {}       # symbol -> instrument
        self.listed = {}        # symbol -> exponents of an instrument list
        self.depths = {}        # symbol -> book depth that an acknowledgement told
        self.sessions = {}      # connection -> session
        self.matches = {}       # instrument -> Matches
        self.notes = []
        self.accounting = dict.fromkeys(("decoded", "ignored", "control", "empty", "unlisted", "unknown", "malformed",
                                         "out", "conn", "rest_snapshot", "rest_instruments", "rest_other"), 0)
        self.events_ignored = 0

    def close(self):
        self.ring.close()
        self.publisher.close()

    def record(self, record):
        """One line of the capture."""
        if record.direction in ("in", "in64"):
            self._frame(record)
        elif record.direction == "rest":
            self._rest(record)
        elif record.direction == "conn":
            self._connected(record)
        else:
            self.accounting["out"] += 1
        self._drain(SLOT_COUNT // 8)

    # -- frames ----------------------------------------------------------------------------------------------

    def _frame(self, record):
        payload = record.payload if record.direction == "in" else _inflated(record.payload)
        session = self.sessions.setdefault(record.connection, len(self.sessions) + 1)
        while (symbol := self.publisher.unlisted(self.venue, payload)) is not None:
            self._learn(symbol)
        result = self.publisher.feed(self.venue, session, payload, record.recv_ns)
        self._count(record, result)
        if self.publisher.control:
            self._control(payload)
        if result > 0:
            self._carried()
        if self.publisher.notice_count:
            self._notices()

    def _count(self, record, result):
        events, ignored, unlisted, control = self.publisher.last_frame()
        self.events_ignored += ignored
        if result < 0:
            kind = {ERROR_UNKNOWN: "unknown", ERROR_SYMBOL: "unlisted"}.get(result, "malformed")
            self._note(f"line {record.line}: {kind} ({result}): {record.payload[:100]!r}")
        else:
            kind = ("decoded" if events else "control" if control else "ignored" if ignored else
                    "unlisted" if unlisted else "empty")
        self.accounting[kind] += 1

    def _note(self, text):
        if len(self.notes) < NOTES_KEPT:
            self.notes.append(text)

    def _control(self, payload):
        """Acknowledgements may tell the depth of a book (Kraken): we truncate to what was subscribed."""
        for answer in self.venue.control(payload):
            wire = getattr(answer, "wire", "")
            if not wire.startswith("{"):
                continue
            params = json.loads(wire)
            if params.get("depth") and params.get("symbol"):
                self.depths[params["symbol"]] = params["depth"]

    def _learn(self, symbol):
        """A symbol met for the first time: add it with all its streams."""
        instrument = len(self.symbols)
        if symbol in self.symbols:
            raise VerifyError(f"{self.venue.name}: symbol {symbol!r} was added and is still not found")
        if instrument == ROW_MAX:
            raise VerifyError(f"the capture names more than {ROW_MAX} symbols")
        price_exponent, size_exponent = self.listed.get(symbol, (0, 0))
        self.venue.add_instrument(instrument, symbol, price_exponent, size_exponent)
        self.symbols[symbol] = instrument
        self.digest.add(instrument, symbol, price_exponent, size_exponent)
        depth, snapshot = self._book_stream(symbol)
        for channel in CHANNELS:
            if channel == "book":
                self.publisher.add_stream(self.venue, instrument, channel, self.depths.get(symbol, depth), snapshot)
            else:
                self.publisher.add_stream(self.venue, instrument, channel)
        if snapshot == "rest":
            self.publisher.hold(instrument)
        return instrument

    def _book_stream(self, symbol):
        try:
            stream = self.venue.stream(symbol, Channel("book"))
        except VenueError as error:
            self._note(f"{symbol}: {error}")
            return 0, "in_band"
        return stream.depth, stream.snapshot

    def _notices(self):
        """A broken REST book waits for the next snapshot of the capture, holding changes back until then."""
        for instrument, _, code, _, _ in self.publisher.notices():
            if code in (NOTICE_GAP, NOTICE_PENDING_FULL) and self.venue.resync == "rest":
                self.publisher.hold(instrument)

    # -- the venue's own best bid and ask against our book ---------------------------------------------------

    def _carried(self):
        for instrument, kind, update, *words in self.publisher.carried():
            self._matches(instrument).add(kind == KIND_QUOTE, update, words, self.venue.exponents(instrument))

    def _matches(self, instrument):
        matches = self.matches.get(instrument)
        if matches is None:
            matches = self.matches[instrument] = Matches()
        return matches

    # -- everything else -------------------------------------------------------------------------------------

    def _connected(self, record):
        """A connection name used again is a reconnect: what its streams missed is a gap."""
        self.accounting["conn"] += 1
        if record.connection in self.sessions:
            self.publisher.session_lost(self.sessions[record.connection], list(self.symbols.values()))
            self._notices()
            if self.venue.resync == "rest":
                for instrument in self.symbols.values():
                    self.publisher.hold(instrument)

    def _rest(self, record):
        url, body = record.rest()
        symbol = self._snapshot_symbol(url)
        if symbol is not None:
            self.accounting["rest_snapshot"] += 1
            self._snapshot(record, symbol, body)
        elif any(request.path.partition("?")[0] in url for request in self.venue.instrument_requests()):
            self.accounting["rest_instruments"] += 1
            self._instruments(record, body)
        else:
            self.accounting["rest_other"] += 1

    def _snapshot_symbol(self, url):
        """The symbol a URL asks a book snapshot of, or None: the venue's own request names path and parameter."""
        if self.venue.resync != "rest":
            return None
        marker = "SYMBOL"
        asked = urllib.parse.urlsplit(self.venue.snapshot_request(marker, 0).path)
        given = urllib.parse.urlsplit(url)
        parameter = next((key for key, value in urllib.parse.parse_qsl(asked.query) if value.upper() == marker), None)
        if parameter is None or not given.path.endswith(asked.path.rpartition("/")[2]):
            return None
        return dict(urllib.parse.parse_qsl(given.query)).get(parameter)

    def _snapshot(self, record, symbol, body):
        instrument = self.symbols[symbol] if symbol in self.symbols else self._learn(symbol)
        state = self.publisher.snapshot(self.venue, instrument, body, record.recv_ns)
        if state == "MALFORMED":
            self._note(f"line {record.line}: the snapshot of {symbol} cannot be decoded: {body[:100]!r}")
        elif state == "LIVE":
            update, *words = self.publisher.book_touch(instrument)
            self._matches(instrument).add(False, update, words, self.venue.exponents(instrument))
        self._notices()

    def _instruments(self, record, body):
        try:
            found = self.venue.instruments([body])
        except (VenueError, KeyError, TypeError, ValueError) as error:  # an old list; digits are learnt from the data
            self._note(f"line {record.line}: the instrument list cannot be read ({error!r})")
            return
        for instrument in found:
            self.listed[instrument.symbol] = (_exponent(instrument.tick), _exponent(instrument.lot))

    # -- results ---------------------------------------------------------------------------------------------

    def _drain(self, least):
        """Read back what was published since the last call, once it is at least that many records."""
        position = self.publisher.position
        count = position - self.position
        if count < least or count == 0:
            return
        if count > SLOT_COUNT:
            raise VerifyError(f"one frame published {count} records, more than the private ring of {SLOT_COUNT} slots holds")
        self.publisher.turn()
        position = self.publisher.position
        begin, end = self.position % SLOT_COUNT, position % SLOT_COUNT
        for first, last in ((begin, end),) if begin < end else ((begin, SLOT_COUNT), (0, end)):
            self.digest.feed(self.ring[RING_HEADER_SIZE + first * SLOT_SIZE:RING_HEADER_SIZE + last * SLOT_SIZE])
        self.position = position

    def document(self):
        """What verify.md describes, and what became of every record and frame."""
        self._drain(1)
        document = self.digest.document()
        for symbol, instrument in self.symbols.items():
            self._book(document, symbol, instrument)
            if symbol in document["bbo"]:
                matches = self._matches(instrument)
                document["bbo"][symbol] |= {"l1_match": matches.equal, "l1_mismatch": matches.different}
        accounting = self.accounting | {"events_ignored": self.events_ignored, "records": self.digest.records}
        return document | {"accounting": accounting, "notes": self.notes}

    def _book(self, document, symbol, instrument):
        """Join what records tell of a book with what only the publisher counted."""
        stats = self.publisher.book_stats(instrument)
        if symbol not in document["books"]:
            if not self.publisher.stream_stats(instrument, "book")[1]:
                return
            document["books"][symbol] = self.digest.instruments[instrument].book()  # changes, and never a snapshot
        book = document["books"][symbol]
        book |= {key: stats[key] for key in ("snapshots", "updates", "stale", "crossed")}
        if stats["checksum_ok"] or stats["checksum_bad"]:
            book |= {key: stats[key] for key in ("checksum_ok", "checksum_bad")}
        if book["gaps"] != stats["gaps"] or book["levels"] != stats["levels"]:
            raise VerifyError(f"{symbol}: the ring tells of {book['gaps']} gaps and {book['levels']} levels, "
                              f"the publisher of {stats['gaps']} and {stats['levels']}: one of them is wrong")


class Matches:
    """Quotes and book states of one symbol that carry the same update id, compared."""

    def __init__(self):
        self.equal = self.different = 0
        self.quotes = {}    # update id -> text, the latest QUOTES_KEPT
        self.book = (0, None)

    def add(self, is_quote, update, words, exponents):
        if is_quote:
            self.quotes[update] = (words, exponents)
            if len(self.quotes) > QUOTES_KEPT:
                del self.quotes[next(iter(self.quotes))]
            if update == self.book[0]:
                self._compare((words, exponents), self.book[1])
        else:
            self.book = (update, (words, exponents))
            if update in self.quotes:
                self._compare(self.quotes[update], self.book[1])

    def _compare(self, quote, book):
        if _texts(*quote) == _texts(*book):
            self.equal += 1
        else:
            self.different += 1


def _texts(words, exponents):
    return [canonical(word, exponents[place & 1]) for place, word in enumerate(words)]


def _inflated(payload):
    """A binary frame as text: some venues send gzip in it."""
    if payload[:2] != b"\x1f\x8b":
        return payload
    inflate = zlib.decompressobj(31)
    text = inflate.decompress(payload, INFLATE_SIZE_MAX)
    if inflate.unconsumed_tail:
        raise VerifyError(f"a binary frame inflates to more than {INFLATE_SIZE_MAX} bytes")
    return text


def _exponent(step):
    """Exponent that holds a step given as decimal text, its trailing zeros included."""
    match = re.fullmatch(r"\d*(?:\.(\d*))?(?:[eE]([-+]?\d+))?", step)
    if not match:
        raise ValueError(f"{step!r} is no decimal number")
    return min(0, int(match[2] or 0) - len(match[1] or ""))


def compare(document, expected):
    """Differences from an expected document, the first of each symbol: a list of sentences, empty if all agree."""
    differences = []
    for section in COMPARED:
        ours, theirs = document.get(section, {}), expected.get(section, {})
        for symbol in sorted(ours.keys() | theirs.keys()):
            if symbol not in theirs:
                differences.append(f"{section}.{symbol}: not expected, but the capture gave one")
            elif symbol not in ours:
                differences.append(f"{section}.{symbol}: expected, but the capture gave none")
            else:
                differences += _first_difference(f"{section}.{symbol}", ours[symbol], theirs[symbol])
    return differences


def _first_difference(where, ours, theirs):
    for field, value in theirs.items():
        if ours.get(field) == value:
            continue
        if isinstance(value, list) and isinstance(ours.get(field), list):
            for index, (one, other) in enumerate(zip(ours[field], value)):
                if one != other:
                    return [f"{where}.{field}[{index}]: expected {other}, got {one}"]
        return [f"{where}.{field}: expected {value}, got {ours.get(field)}"]
    return []
