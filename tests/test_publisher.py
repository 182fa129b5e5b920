"""The publisher: hand-made frames in, records and state rows out, read back from the files it writes."""
import itertools
import json
import mmap
import os
import struct
import tempfile
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feedhandler import venues
from feedhandler.worker.publisher import Publisher
from feedhandler.worker.session import Figures

RECORD = struct.Struct("<QQQIBBHqqqq")
TRADE, QUOTE, TOUCH, LEVEL, STATUS = 1, 2, 3, 4, 32
LAST, SNAPSHOT, RESET, GAP_BEFORE, STALE = 1, 2, 4, 8, 16
GAP, RESYNC, STALE_STREAM, LIVE, EPOCH, CHANGED, CLOCK = 1, 2, 3, 4, 7, 12, 13
BOOK = 3
NOTICE_FIRST_DATA, NOTICE_GAP, NOTICE_LIVE, NOTICE_AHEAD, NOTICE_EXPONENT, NOTICE_PENDING_FULL = 1, 2, 3, 4, 5, 6
UNDEFINED = -(1 << 63)
NOW = 1_700_000_000_000_000_000
MAGIC_STATE = 0x0031415453484600
HEAD = 384  # offset of fh_ring.head
ROW_SIZE, L1_SIZE, BOOK_SIZE = 64 + 2 * 192 + 2 * 704, 192, 704


class Rig:
    """One venue, one publisher on a ring of its own, and what was read from it so far."""

    def __init__(self, venue="binance-spot", slots=1 << 14, levels=64, rows=8, state=False, directory=None, resume=False):
        self.directory = directory or tempfile.mkdtemp(prefix=f"test-{os.getpid()}-", dir="/dev/shm")
        if state:
            self.make_state(rows)
        fd = os.open(self.directory, os.O_RDONLY)
        try:
            self.publisher = Publisher(fd, 0, slots, rows, levels, resume=resume)
        finally:
            os.close(fd)
        self.venue = venues.load(venue, rows)
        self.slots, self.read = slots, 0
        with open(f"{self.directory}/worker-0.ring", "rb") as file:
            self.map = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)

    def make_state(self, rows):
        """`state` as the supervisor makes it; the schema hash is that of a ring of the same build."""
        other = Rig()
        head = bytearray(other.map[:56])
        other.close()
        struct.pack_into("<QII", head, 0, MAGIC_STATE, 1, 4096)
        struct.pack_into("<Q", head, 24, 4096 + rows * ROW_SIZE)
        struct.pack_into("<II", head, 48, ROW_SIZE, rows)
        with open(f"{self.directory}/state", "wb") as file:
            file.write(head.ljust(4096, b"\0") + bytes(rows * ROW_SIZE))

    def close(self, keep=False):
        self.map.close()
        self.publisher.close()
        if not keep:
            for name in os.listdir(self.directory):
                os.unlink(f"{self.directory}/{name}")
            os.rmdir(self.directory)

    def add(self, symbol="BTCUSDT", price=-2, size=-3, depth=0, snapshot="rest", channels=("book",), instrument=0):
        self.venue.add_instrument(instrument, symbol, price, size)
        for channel in channels:
            self.publisher.add_stream(self.venue, instrument, channel, depth, snapshot if channel == "book" else "")

    def feed(self, message, session=1, ts=NOW):
        text = message if isinstance(message, bytes) else json.dumps(message).encode()
        return self.publisher.feed(self.venue, session, text, ts)

    def records(self, clock=False):
        """Records since the last call: (kind, flags, instrument, words); STATUS as (kind, code, instrument, (detail, a, b))."""
        found = []
        for position in range(self.read, self.publisher.position):
            row = RECORD.unpack_from(self.map, 4096 + (position % self.slots) * 64)
            assert row[0] == position + 1, "the commit word of every record is its position and one"
            kind, flags, words = row[4], row[5], row[7:]
            if kind == STATUS:
                code, detail = words[0] & 0xffffffff, words[0] >> 32
                if code != CLOCK or clock:
                    found.append((STATUS, code, row[3], (detail, words[1], words[2])))
            else:
                found.append((kind, flags, row[3], words))
        self.read = self.publisher.position
        return found

    def l1(self, instrument=0):
        with open(f"{self.directory}/state", "rb") as file:
            row = file.read()[4096 + instrument * ROW_SIZE:][:ROW_SIZE]
        latch = struct.unpack_from("<Q", row, 8)[0] & 1
        return struct.unpack_from("<QQQQ" + "q" * 10 + "QqqqQqIBBbb", row, 64 + latch * L1_SIZE)

    def top(self, instrument=0):
        with open(f"{self.directory}/state", "rb") as file:
            row = file.read()[4096 + instrument * ROW_SIZE:][:ROW_SIZE]
        base = 64 + 2 * L1_SIZE + (struct.unpack_from("<Q", row, 16)[0] & 1) * BOOK_SIZE
        bids, asks = struct.unpack_from("<HH", row, base + 24)
        return ([struct.unpack_from("<qq", row, base + 64 + 16 * i) for i in range(bids)],
                [struct.unpack_from("<qq", row, base + 64 + 320 + 16 * i) for i in range(asks)])


@pytest.fixture
def rig():
    """Rig(…), closed at the end."""
    made = []

    def make(*args, **keywords):
        made.append(Rig(*args, **keywords))
        return made[-1]
    yield make
    for one in made:
        one.close()


def depth(first, last, bids=(), asks=(), symbol="BTCUSDT"):
    return {"stream": f"{symbol.lower()}@depth@100ms", "data": {
        "e": "depthUpdate", "E": 1_700_000_000_000, "s": symbol, "U": first, "u": last,
        "b": [list(row) for row in bids], "a": [list(row) for row in asks]}}


def seed(last, bids=(("100.00", "1.000"),), asks=(("101.00", "2.000"),)):
    return json.dumps({"lastUpdateId": last, "bids": [list(row) for row in bids], "asks": [list(row) for row in asks]}).encode()


def trade(identity, price="100.00", size="1.000", symbol="BTCUSDT"):
    return {"stream": f"{symbol.lower()}@trade", "data": {"e": "trade", "E": 1_700_000_000_000, "s": symbol, "t": identity,
            "p": price, "q": size, "T": 1_700_000_000_000, "m": True, "M": True}}


def quote(update, bid="100.00", bid_size="1.000", ask="101.00", ask_size="2.000"):
    return {"stream": "btcusdt@bookTicker", "data": {"u": update, "s": "BTCUSDT", "b": bid, "B": bid_size, "a": ask, "A": ask_size}}


def live(rig, **keywords):
    """A Binance book, live at id 100, its first records read."""
    one = rig(**keywords)
    one.add()
    one.publisher.hold(0)
    assert one.publisher.snapshot(one.venue, 0, seed(100), NOW) == "LIVE"
    one.records()
    one.publisher.notices()
    return one


def side(words):
    return words[3] & 0xff


def books_of(records, books=None):
    """The books a reader keeps: {instrument: {(side, price): size}} from complete events only."""
    books = {} if books is None else books
    waiting = {}
    for kind, flags, instrument, words in records:
        if kind == STATUS and flags == GAP and words[0] == BOOK:
            books[instrument] = None
        if kind != LEVEL:
            continue
        waiting.setdefault(instrument, []).append((flags, words))
        if not flags & LAST:
            continue
        for level_flags, level in waiting.pop(instrument):
            if level_flags & RESET:
                books[instrument] = {}
            assert books.get(instrument) is not None, "no level of a broken book before RESET"
            if level[1]:
                books[instrument][side(level), level[0]] = level[1]
            else:
                books[instrument].pop((side(level), level[0]), None)
    return books


# -- book events ----------------------------------------------------------------------------------------------

def test_a_snapshot_is_levels_bids_first_then_its_touch_then_live(rig):
    one = rig()
    one.add()
    one.publisher.hold(0)
    body = seed(100, [("99.00", "3"), ("100.00", "1")], [("102.00", "4"), ("101.00", "2")])
    assert one.publisher.snapshot(one.venue, 0, body, NOW) == "LIVE"
    assert [(kind, flags, words[:2]) for kind, flags, _, words in one.records()] == [
        (LEVEL, RESET | SNAPSHOT, (10000, 1000)), (LEVEL, SNAPSHOT, (9900, 3000)),
        (LEVEL, SNAPSHOT, (10100, 2000)), (LEVEL, SNAPSHOT | LAST, (10200, 4000)),
        (TOUCH, LAST, (10000, 1000)), (STATUS, LIVE, (BOOK, 0))]
    assert [notice[:3] for notice in one.publisher.notices()] == [(0, BOOK, NOTICE_LIVE)]


def test_an_empty_snapshot_is_one_level_without_price(rig):
    one = rig()
    one.add()
    one.publisher.hold(0)
    assert one.publisher.snapshot(one.venue, 0, seed(100, (), ()), NOW) == "LIVE"
    records = one.records()
    assert records[0][:2] == (LEVEL, RESET | SNAPSHOT | LAST) and records[0][3][:2] == (UNDEFINED, 0) and side(records[0][3]) == 0
    assert records[1][:2] == (TOUCH, LAST) and records[1][3] == (UNDEFINED, 0, UNDEFINED, 0)


def test_a_change_below_the_touch_moves_no_touch_and_one_at_it_does(rig):
    one = live(rig)
    one.feed(depth(101, 101, [("99.00", "5.000")]))
    assert [record[:2] for record in one.records()] == [(LEVEL, LAST)]
    one.feed(depth(102, 102, [("100.00", "5.000")]))
    assert [record[:2] for record in one.records()] == [(LEVEL, LAST), (TOUCH, LAST)]


def test_a_message_that_changes_nothing_writes_nothing_and_chains(rig):
    one = live(rig)
    one.feed(depth(101, 103))
    one.feed(depth(104, 104, [("100.00", "1.000"), ("55.00", "0")]))  # as it is already; a deletion of nothing
    assert one.records() == []
    one.feed(depth(105, 105, [("100.00", "0.000")]))
    assert [record[:2] for record in one.records()] == [(LEVEL, LAST), (TOUCH, LAST)]
    assert one.publisher.counter("book_deletes_absent") == 1


def test_bids_come_before_asks_whatever_the_message_order(rig):
    one = rig("okx")
    one.add("BTC-USDT", -1, -1, snapshot="in_band")
    arg = {"channel": "books", "instId": "BTC-USDT"}
    one.feed({"arg": arg, "action": "snapshot", "data": [{"asks": [["2", "1", "0", "1"]], "bids": [["1", "1", "0", "1"]],
              "ts": "1700000000000", "checksum": 0, "seqId": 10, "prevSeqId": -1}]})
    one.records()
    one.feed({"arg": arg, "action": "update", "data": [{"asks": [["3", "1", "0", "1"]], "bids": [["0.5", "1", "0", "1"]],
              "ts": "1700000000001", "checksum": 0, "seqId": 11, "prevSeqId": 10}]})
    assert [(side(words), words[0]) for kind, _, _, words in one.records() if kind == LEVEL] == [(1, 5), (2, 30)]


# -- chain, gap, resync ---------------------------------------------------------------------------------------

def test_a_gap_is_published_once_and_before_anything_later_of_the_instrument(rig):
    one = live(rig)
    for first in (103, 104, 105):
        one.feed(depth(first, first, [("100.00", str(first))]))
    assert one.records() == [(STATUS, GAP, 0, (BOOK, 100, 103))]
    assert [notice for notice in one.publisher.notices()] == [(0, BOOK, NOTICE_FIRST_DATA, 0, 0), (0, BOOK, NOTICE_GAP, 100, 103)]
    assert one.publisher.stream_stats(0, "book")[2:] == (1, "GAP")
    assert one.publisher.counter("book_pending_dropped") == 2


def test_after_a_gap_a_snapshot_brings_the_book_back_whole(rig):
    one = live(rig)
    one.feed(depth(103, 103, [("100.00", "9")]))
    one.publisher.hold(0)
    one.feed(depth(104, 104, [("98.00", "7")]))
    assert [record[:2] for record in one.records()] == [(STATUS, GAP), (STATUS, RESYNC)]
    assert one.publisher.snapshot(one.venue, 0, seed(103), NOW) == "LIVE"
    records = one.records()
    assert [record[:2] for record in records][-2:] == [(TOUCH, LAST), (STATUS, LIVE)]
    assert books_of(records)[0] == {(1, 10000): 1000, (1, 9800): 7000, (2, 10100): 2000}


def test_duplicate_and_old_messages_change_nothing_and_are_counted(rig):
    one = live(rig)
    message = depth(101, 102, [("100.00", "4.000")])
    one.feed(message)
    one.records()
    one.feed(message)
    one.feed(depth(90, 95, [("100.00", "8.000")]))
    assert one.records() == []
    assert one.publisher.book_stats(0)["stale"] == 2


def test_reordered_messages_are_a_gap(rig):
    one = live(rig)
    one.feed(depth(102, 102, [("100.00", "4")]))
    one.feed(depth(101, 101, [("100.00", "3")]))
    assert one.records() == [(STATUS, GAP, 0, (BOOK, 100, 102))]


@pytest.mark.parametrize("first, last, state", [
    (101, 101, "LIVE"),      # starts right behind the snapshot
    (100, 102, "LIVE"),      # straddles it
    (99, 100, "LIVE"),       # all in it: dropped
    (102, 103, "SYNCING"),   # one id is missing between: fetch another
])
def test_held_back_changes_chain_behind_the_snapshot_at_both_boundaries(rig, first, last, state):
    one = rig()
    one.add()
    one.publisher.hold(0)
    one.feed(depth(first, last, [("100.00", "7.000")]))
    assert one.records() == []
    assert one.publisher.snapshot(one.venue, 0, seed(100), NOW) == state
    if state == "SYNCING":
        assert [notice[2] for notice in one.publisher.notices()] == [NOTICE_FIRST_DATA, NOTICE_AHEAD]
        assert one.publisher.snapshot(one.venue, 0, seed(101), NOW) == "LIVE"
        last = 103
    assert books_of(one.records())[0][1, 10000] == (7000 if last > 100 else 1000)


def test_snapshot_and_held_back_changes_are_one_step(rig):
    one = rig()
    one.add()
    one.publisher.hold(0)
    for update in range(101, 111):
        one.feed(depth(update, update, [("100.00", f"{update}.000")]))
    one.publisher.snapshot(one.venue, 0, seed(100), NOW)
    records = one.records()
    assert sum(kind == TOUCH for kind, *_ in records) == 1
    assert books_of(records)[0][1, 10000] == 110_000


def test_a_gap_inside_the_held_back_changes_is_a_gap(rig):
    one = rig()
    one.add()
    one.publisher.hold(0)
    one.feed(depth(101, 101, [("100.00", "7")]))
    one.feed(depth(103, 103, [("100.00", "8")]))
    assert one.publisher.snapshot(one.venue, 0, seed(100), NOW) == "GAP"
    assert one.records() == [(STATUS, GAP, 0, (BOOK, 101, 103))]


def test_changes_before_hold_are_dropped_and_counted(rig):
    one = rig()
    one.add()
    one.feed(depth(101, 101, [("100.00", "7")]))
    assert one.records() == [] and one.publisher.counter("book_pending_dropped") == 1
    assert one.publisher.stream_stats(0, "book")[3] == "PENDING"


def test_held_back_changes_overflow_by_count_of_messages(rig):
    one = rig()
    one.add()
    one.publisher.hold(0)
    text = json.dumps(depth(101, 101, [("100.00", "7")])).encode()
    for _ in range(65536):
        one.feed(text)
    assert one.publisher.book_stats(0)["held"] == 65536
    assert [notice[2] for notice in one.publisher.notices()] == [NOTICE_FIRST_DATA]
    one.feed(text)
    assert [notice[2] for notice in one.publisher.notices()] == [NOTICE_PENDING_FULL]
    stats = one.publisher.book_stats(0)
    assert stats["held"] == 0 and stats["state"] == "PENDING" and stats["dropped"] == 65537
    one.publisher.hold(0)  # the pool is whole again
    one.feed(text)
    assert one.publisher.snapshot(one.venue, 0, seed(100), NOW) == "LIVE"


def test_held_back_changes_overflow_by_count_of_levels(rig):
    one = rig()
    one.add()
    one.publisher.hold(0)
    text = json.dumps(depth(101, 101, [(f"{price}.00", "1.000") for price in range(1, 10_001)])).encode()
    kept = 65536 // -(-10_000 // 30)  # runs of the pool, 30 levels each
    for _ in range(kept):
        one.feed(text)
    assert one.publisher.book_stats(0)["held"] == kept
    one.feed(text)
    assert [notice[2] for notice in one.publisher.notices()] == [NOTICE_FIRST_DATA, NOTICE_PENDING_FULL]
    assert one.publisher.book_stats(0)["dropped"] == kept + 1 and one.records() == []
    one.publisher.hold(0)
    for _ in range(kept):
        one.feed(text)
    assert one.publisher.book_stats(0)["held"] == kept, "every run is free again"


def test_a_lost_frame_breaks_a_book_that_cannot_notice_and_no_other(rig):
    one = rig("kraken")
    for instrument, symbol in enumerate(("A/USD", "B/USD")):
        one.add(symbol, -1, -8, 10, "in_band", instrument=instrument)
    whole = kraken_book("snapshot", BIDS, ASKS, kraken_crc(BIDS, ASKS), "A/USD")
    one.feed(whole)
    one.feed(whole.replace(b"A/USD", b"B/USD").replace(b'"checksum":', b'"unknown":'))
    one.records()
    one.feed(b'{"channel":"weather"}')
    assert one.records() == []
    one.feed(whole[:-9], session=2)
    assert one.records() == []
    one.feed(whole[:-9])
    assert one.records() == [(STATUS, GAP, 1, (BOOK, 0, 0))]


def test_a_snapshot_that_is_no_json_is_refused_and_what_is_held_back_stays(rig):
    one = rig()
    one.add()
    one.publisher.hold(0)
    one.feed(depth(101, 101, [("100.00", "7.000")]))
    body = seed(100)
    for cut in range(len(body)):
        assert one.publisher.snapshot(one.venue, 0, body[:cut], NOW) == "MALFORMED"
    assert one.publisher.snapshot(one.venue, 0, body, NOW) == "LIVE"
    assert books_of(one.records())[0][1, 10000] == 7000


def test_a_crossed_book_is_counted_and_published(rig):
    one = live(rig)
    one.feed(depth(101, 101, [("101.00", "1.000")]))
    assert [record[:2] for record in one.records()] == [(LEVEL, LAST), (TOUCH, LAST)]
    assert one.publisher.book_stats(0)["crossed"] == 1 and one.publisher.book_stats(0)["state"] == "LIVE"


# -- checksum, depth, size ------------------------------------------------------------------------------------

def kraken_crc(bids, asks):
    """By the venue's rule, over texts: digits as sent, no dot, no leading zeros; asks first."""
    rows = sorted(asks, key=lambda row: float(row[0]))[:10] + sorted(bids, key=lambda row: -float(row[0]))[:10]
    return zlib.crc32("".join(value.replace(".", "").lstrip("0") for row in rows for value in row).encode())


def kraken_book(kind, bids, asks, checksum, symbol="BTC/USD"):
    rows = {name: "[" + ",".join(f'{{"price":{price},"qty":{qty}}}' for price, qty in side) + "]"
            for name, side in (("bids", bids), ("asks", asks))}
    return (f'{{"channel":"book","type":"{kind}","data":[{{"symbol":"{symbol}","bids":{rows["bids"]},"asks":{rows["asks"]},'
            f'"checksum":{checksum},"timestamp":"2026-08-24T22:21:57.110183Z"}}]}}').encode()


BIDS = [("100.0", "1.00000000"), ("99.9", "2.00000000")]
ASKS = [("100.1", "1.50000000"), ("100.2", "2.50000000")]


def kraken(rig, depth=10, **keywords):
    one = rig("kraken", **keywords)
    one.add("BTC/USD", -1, -8, depth, "in_band")
    one.feed(kraken_book("snapshot", BIDS, ASKS, kraken_crc(BIDS, ASKS)))
    assert one.publisher.book_stats(0)["state"] == "LIVE"
    one.records()
    one.publisher.notices()
    return one


def test_a_message_with_a_wrong_checksum_publishes_gap_and_none_of_its_levels(rig):
    one = kraken(rig)
    right = kraken_crc([("100.0", "3.00000000"), BIDS[1]], ASKS)
    one.feed(kraken_book("update", [("100.0", "3.00000000")], [], right))
    assert [record[0] for record in one.records()] == [LEVEL, TOUCH]
    one.feed(kraken_book("update", [("100.0", "4.00000000")], [], right))
    assert one.records() == [(STATUS, GAP, 0, (BOOK, right, 0))]
    assert [notice[:3] for notice in one.publisher.notices()] == [(0, BOOK, NOTICE_GAP)]
    assert one.publisher.counter("book_checksum_bad") == 1
    one.feed(kraken_book("snapshot", BIDS, ASKS, kraken_crc(BIDS, ASKS)))
    assert [record[:2] for record in one.records()][-2:] == [(TOUCH, LAST), (STATUS, LIVE)]


def test_a_snapshot_with_a_wrong_checksum_never_goes_live(rig):
    one = rig("kraken")
    one.add("BTC/USD", -1, -8, 10, "in_band")
    one.feed(kraken_book("snapshot", BIDS, ASKS, 1))
    assert one.records() == [(STATUS, GAP, 0, (BOOK, 1, 0))]
    one.feed(kraken_book("snapshot", BIDS, ASKS, 2))
    assert one.records() == []
    assert [notice[2] for notice in one.publisher.notices()] == [NOTICE_FIRST_DATA, NOTICE_GAP]


def test_levels_pushed_out_of_the_subscribed_depth_are_published_as_deleted(rig):
    bids = [(f"{90 + i}.0", "1.00000000") for i in range(10)]
    one = rig("kraken")
    one.add("BTC/USD", -1, -8, 10, "in_band")
    one.feed(kraken_book("snapshot", bids, ASKS, kraken_crc(bids, ASKS)))
    books = books_of(one.records())
    better = ("99.5", "5.00000000")
    one.feed(kraken_book("update", [better], [], kraken_crc(bids + [better], ASKS)))
    records = one.records()
    assert [(words[0], words[1]) for kind, _, _, words in records if kind == LEVEL] == [(995, 500_000_000), (900, 0)]
    books = books_of(records, books)
    assert len([key for key in books[0] if key[0] == 1]) == 10 == one.publisher.book_stats(0)["levels"][0]


def test_levels_a_full_book_evicts_are_published_as_deleted(rig):
    one = live(rig, levels=4)
    books = {0: {(1, 10000): 1000, (2, 10100): 2000}}
    for i in range(8):
        one.feed(depth(101 + i, 101 + i, [(f"{100 + i}.50", "1.000")]))
    books = books_of(one.records(), books)
    assert sorted(price for which, price in books[0] if which == 1) == [10450, 10550, 10650, 10750]
    assert one.publisher.book_stats(0)["levels"] == [4, 1]


def test_a_snapshot_larger_than_a_quarter_ring_comes_in_parts_and_live_ends_it(rig):
    one = rig(slots=1024, levels=1000)
    one.add()
    one.publisher.hold(0)
    bids = [(f"{i}.00", "1.000") for i in range(1, 601)]
    assert one.publisher.snapshot(one.venue, 0, seed(100, bids), NOW) == "LIVE"
    records = one.records()
    assert [index for index, record in enumerate(records) if record[0] == LEVEL and record[1] & LAST] == [255, 511, 600]
    assert [index for index, record in enumerate(records) if record[0] == LEVEL and record[1] & RESET] == [0]
    assert [record[:2] for record in records[601:]] == [(TOUCH, LAST), (STATUS, LIVE)]
    assert len(books_of(records)[0]) == 601


# -- digits ---------------------------------------------------------------------------------------------------

def test_more_digits_raise_the_exponent_and_republish_the_book_before_the_event(rig):
    one = live(rig)
    one.feed(depth(101, 101, [("100.125", "1.0001")]))
    records = one.records()
    assert records[0] == (STATUS, CHANGED, 0, (0, -3, -4))
    assert [(flags, words[:2]) for kind, flags, _, words in records if kind == LEVEL] == [
        (RESET | SNAPSHOT, (100_000, 10_000)), (SNAPSHOT | LAST, (101_000, 20_000)), (LAST, (100_125, 10_001))]
    assert one.venue.exponents(0) == (-3, -4)
    assert (0, 0, NOTICE_EXPONENT, -3, -4) in one.publisher.notices()


def test_held_back_changes_follow_a_raised_exponent(rig):
    one = rig()
    one.add(price=0, size=0)
    one.publisher.hold(0)
    one.feed(depth(101, 101, [("99", "5")]))
    one.feed(depth(102, 102, [("98.5", "6.25")]))
    one.publisher.snapshot(one.venue, 0, seed(100), NOW)
    assert books_of(one.records())[0] == {(1, 1000): 100, (1, 990): 500, (1, 985): 625, (2, 1010): 200}


def test_a_number_that_cannot_be_held_is_flagged_and_never_rounded_in_silence(rig):
    one = rig()
    one.add(channels=("trade",))
    one.feed(trade(1, "60000.00", "1.000"))
    one.feed(trade(2, "60000.000000000000000001", "1.000"))  # 18 digits: 60,000 would not fit
    records = [record for record in one.records() if record[0] == TRADE]
    assert records[0][1] == LAST and records[1][1] == LAST | 32 and records[1][3][0] == 6_000_000
    assert one.publisher.counter("inexact") == 1 and one.venue.exponents(0) == (-2, -3)


# -- trades and quotes, arbitration ---------------------------------------------------------------------------

def test_two_lines_of_trades_come_out_once_each_and_late_ones_are_not_lost(rig):
    one = rig()
    one.add(channels=("trade", "trade"))
    arrivals = [(1, 1), (2, 1), (1, 3), (2, 2), (2, 3), (1, 4), (3, 2), (2, 4), (2, 5)]  # line 1 never gets 2
    for line, identity in arrivals:
        one.feed(trade(identity), session=line)
    assert [words[2] for kind, _, _, words in one.records() if kind == TRADE] == [1, 3, 2, 4, 5]
    assert one.publisher.counter("duplicates") == 4


def test_an_older_quote_is_out_of_date_and_dropped(rig):
    one = rig()
    one.add(channels=("quote",))
    for update, bid in ((5, "100.00"), (4, "99.00"), (5, "98.00"), (6, "97.00")):
        one.feed(quote(update, bid))
    assert [words[0] for kind, _, _, words in one.records() if kind == QUOTE] == [10000, 9700]
    assert one.publisher.counter("duplicates") == 2


def test_ids_that_start_again_are_believed_after_a_run_and_say_gap_before(rig):
    one = rig()
    one.add(channels=("trade",))
    one.feed(trade(1_000_000))
    for identity in range(1, 1030):
        one.feed(trade(identity))
    found = [(words[2], flags) for kind, flags, _, words in one.records() if kind == TRADE]
    assert found[0] == (1_000_000, LAST) and found[1] == (1024, LAST | GAP_BEFORE) and found[-1] == (1029, LAST)


def test_a_lost_session_is_a_gap_of_its_trades_and_the_next_one_says_so(rig):
    one = rig()
    one.add(channels=("trade",))
    one.feed(trade(1))
    one.records()
    one.publisher.session_lost(1, [0])
    one.publisher.session_lost(1, [0])
    assert one.records() == [(STATUS, GAP, 0, (0, 0, 0))]
    one.feed(trade(9), session=2)
    one.feed(trade(10), session=2)
    assert [flags for _, flags, _, _ in one.records()] == [LAST | GAP_BEFORE, LAST]


def test_a_lost_session_breaks_its_book_but_not_one_that_another_line_carries(rig):
    one = live(rig)
    one.feed(depth(101, 101, [("100.00", "2.000")]), session=1)
    one.publisher.add_stream(one.venue, 0, "book", 0, "rest")
    one.feed(depth(101, 101, [("100.00", "2.000")]), session=2)
    one.records()
    one.publisher.session_lost(1, [0])
    assert one.records() == []
    one.feed(depth(102, 102, [("100.00", "3.000")]), session=2)
    assert [record[0] for record in one.records()] == [LEVEL, TOUCH]
    one.publisher.session_lost(2, [0])
    assert one.records() == [(STATUS, GAP, 0, (BOOK, 103, 0))]


def test_a_message_one_line_missed_may_come_on_the_other(rig):
    one = live(rig)
    one.publisher.add_stream(one.venue, 0, "book", 0, "rest")
    messages = {update: depth(update, update, [("100.00", f"{update}.000")]) for update in range(101, 106)}
    for line, update in ((1, 101), (2, 101), (1, 103), (1, 104), (2, 102), (2, 103), (2, 104), (1, 105)):
        one.feed(messages[update], session=line)
    records = one.records()
    assert [words[1] for kind, _, _, words in records if kind == LEVEL] == [101_000, 102_000, 103_000, 104_000, 105_000]
    one.feed(depth(107, 107), session=1)
    assert one.records() == []
    one.feed(depth(108, 108), session=2)  # both lines miss 106
    assert one.records() == [(STATUS, GAP, 0, (BOOK, 105, 108))]


def test_a_book_without_numbers_follows_one_line_at_a_time(rig):
    one = kraken(rig)
    one.publisher.add_stream(one.venue, 0, "book", 10, "in_band")
    change = kraken_book("update", [("100.0", "3.00000000")], [], kraken_crc([("100.0", "3.00000000"), BIDS[1]], ASKS))
    one.feed(change, session=2)
    assert one.records() == [] and one.publisher.counter("duplicates") == 1
    one.feed(change, session=1)
    assert [record[0] for record in one.records()] == [LEVEL, TOUCH]


def test_the_load_of_a_stream_is_its_records_and_its_bursts(rig):
    one = rig()
    one.add(channels=("trade",))
    assert one.publisher.load(0, "trade") == (0, (0, 0, 0))
    identity = 0
    for second in range(20):        # in each second: a burst of 40 within 10 ms, and 60 more, 10 ms apart
        for at in [0] * 40 + list(range(10, 610, 10)):
            identity += 1
            one.feed(trade(identity), ts=NOW + second * 10**9 + at * 10**6)
    records, bursts = one.publisher.load(0, "trade")
    assert records == 2000
    assert all(exact <= burst <= exact * 1.25 for burst, exact in zip(bursts, (40, 49, 100), strict=True)), bursts


# -- refused frames -------------------------------------------------------------------------------------------

def test_refused_frames_are_counted_by_kind_and_publish_nothing(rig):
    one = live(rig)
    text = json.dumps(depth(101, 101, [("100.00", "7.000")])).encode()
    for cut in range(len(text)):
        assert one.feed(text[:cut]) < 0
    assert one.publisher.counter("frames_malformed") + one.publisher.counter("frames_unknown") == len(text)
    assert one.records() == []
    one.feed(text)
    assert [record[0] for record in one.records()] == [LEVEL, TOUCH]


def test_a_symbol_nobody_listed_is_counted_and_named(rig):
    one = live(rig)
    message = depth(1, 1, [("1", "1")], symbol="ETHUSDT")
    assert one.publisher.unlisted(one.venue, json.dumps(message).encode()) == "ETHUSDT"
    one.feed(message)
    assert one.records() == [] and one.publisher.counter("frames_unlisted") == 1


# -- rows, clock, files ---------------------------------------------------------------------------------------

def test_the_row_shows_the_last_values_at_the_end_of_the_batch(rig):
    one = rig(state=True)
    one.add(channels=("book", "trade", "quote"))
    one.publisher.hold(0)
    one.publisher.snapshot(one.venue, 0, seed(100, [("100.00", "1.000"), ("99.00", "2.000")]), NOW)
    one.feed(trade(7, "100.50", "0.250"))
    one.feed(quote(100, "100.01"))
    assert one.l1()[0] == 0, "nothing before the end of the batch"
    one.publisher.turn()
    row = one.l1()
    assert row[0] == one.publisher.position and row[3] == 100
    assert row[4:8] == (10000, 1000, 10100, 2000) and row[8:12] == (10001, 1000, 10100, 2000)
    assert row[12:15] == (10050, 250, 7) and row[20] == LIVE and row[21] == 2 and row[23:25] == (-2, -3)
    assert one.top() == ([(10000, 1000), (9900, 2000)], [(10100, 2000)])


def test_the_row_of_a_broken_book_says_so(rig):
    one = rig(state=True)
    one.add()
    one.publisher.hold(0)
    one.publisher.snapshot(one.venue, 0, seed(100), NOW)
    one.feed(depth(105, 105))
    one.publisher.turn()
    row = one.l1()
    assert row[20] == GAP and row[22] & STALE and row[4] == UNDEFINED and one.top() == ([], [])


def test_head_moves_at_the_end_of_the_batch_and_a_clock_record_ties_the_clocks(rig):
    one = rig()
    one.add(channels=("trade",))
    one.publisher.turn(5_000_000_000)
    assert [record[1] for record in one.records(clock=True)] == [CLOCK]
    one.feed(trade(1))
    assert struct.unpack_from("<Q", one.map, HEAD)[0] == one.publisher.position - 1
    one.publisher.turn(5_500_000_000)
    assert struct.unpack_from("<Q", one.map, HEAD)[0] == one.publisher.position
    assert [record[1] for record in one.records(clock=True)] == [LAST]
    one.publisher.turn(6_000_000_000)
    assert [record[1] for record in one.records(clock=True)] == [CLOCK]


def test_a_row_stays_stale_while_what_comes_is_late_and_is_fresh_when_live_is_said(rig):
    one = rig(state=True)
    one.add(channels=("quote",))
    stale = lambda: bool(one.l1()[22] & STALE)
    one.feed(quote(1))
    one.publisher.status(0, STALE_STREAM, 2, 5)
    assert stale()
    one.feed(quote(2))
    one.publisher.turn()
    assert not stale(), "it was silent, and is heard"
    one.publisher.status(0, STALE_STREAM, 2, 5, 300)
    one.feed(quote(3))
    one.publisher.turn()
    assert stale() and one.records()[-2][:2] == (STATUS, STALE_STREAM)
    one.publisher.status(0, LIVE, 2)
    assert not stale()
    one.publisher.status(0, STALE_STREAM, 2, 5, 300)
    one.publisher.session_lost(1, [0])
    one.feed(quote(4))
    one.publisher.turn()
    assert not stale(), "the next connection is not the one that was late"


def test_each_session_knows_how_late_its_events_are(rig):
    one = rig()
    one.add(channels=("trade",))
    figures = Figures(one.publisher)
    figures.row_open(1, 7, "binance-spot", "market", "")
    for identity, late_ns in ((1, 50_000_000), (2, 20_000_000), (3, -4_000_000), (4, 30_000_000)):
        message = trade(identity)
        one.feed(message, ts=message["data"]["T"] * 1_000_000 + late_ns)
    frames, size, count, least = figures.session_figures(1)
    assert (frames, count, least) == (4, 4, -4_000_000) and size > 400
    assert figures.session_figures(1)[2:] == (4, None), "none since"
    one.feed(trade(5), session=2)
    assert figures.session_figures(1)[2:] == (4, None)


def test_a_resumed_ring_goes_on_with_an_epoch_and_stale_rows(rig):
    first = Rig(state=True)
    first.add()
    first.publisher.hold(0)
    first.publisher.snapshot(first.venue, 0, seed(100), NOW)
    first.publisher.turn()
    position = first.publisher.position
    first.close(keep=True)
    one = rig(directory=first.directory, resume=True)
    one.read = position
    assert one.records()[0][:2] == (STATUS, EPOCH) and one.publisher.epoch == 2
    row = one.l1()
    assert row[20] == GAP and row[22] & STALE and row[4] == 10000, "the last known touch, marked"


def test_after_a_crash_every_stream_the_dead_worker_had_says_gap_before_it_goes_on(rig):
    first = Rig(state=True)
    first.add(channels=("book", "trade", "quote"))
    first.publisher.hold(0)
    first.publisher.snapshot(first.venue, 0, seed(100), NOW)
    first.feed(trade(1))
    first.publisher.turn()
    first.close(keep=True)
    one = rig(directory=first.directory, resume=True)
    one.read = one.publisher.position
    one.add(channels=("book", "trade", "quote"))
    one.publisher.add_stream(one.venue, 0, "trade")
    assert [(record[1], record[3][0]) for record in one.records()] == [(GAP, BOOK), (GAP, 0)], "once a stream, not once a line"
    one.feed(trade(5))
    kind, flags, *_ = one.records()[0]
    assert kind == TRADE and flags & GAP_BEFORE
    one.add("ETHUSDT", instrument=1)
    assert one.records() == [], "a stream the dead worker did not have begins without a gap"


def test_an_impossible_ring_says_what_is_possible(rig):
    directory = tempfile.mkdtemp(dir="/dev/shm")
    fd = os.open(directory, os.O_RDONLY)
    try:
        with pytest.raises(ValueError, match="power of two from 1,024"):
            Publisher(fd, 0, 1000, 8, 8)
        with pytest.raises(ValueError, match="not known; use one of trade"):
            one = rig()
            one.venue.add_instrument(0, "BTCUSDT", 0, 0)
            one.publisher.add_stream(one.venue, 0, "trades")
    finally:
        os.close(fd)
        os.rmdir(directory)


def test_a_row_given_to_another_symbol_starts_anew(rig):
    one = live(rig)
    one.publisher.add_stream(one.venue, 0, "trade")
    one.feed(trade(1_000_000))
    one.publisher.remove_stream(0, "book")
    one.publisher.remove_stream(0, "trade")
    one.add("ETHUSDT", -4, -1, channels=("book", "trade"))
    one.records()
    one.feed(trade(5, "1.2345", "6.5", "ETHUSDT"))
    assert [(kind, words[:3]) for kind, _, _, words in one.records()] == [(TRADE, (12345, 65, 5))]
    one.feed(trade(6, "1.23456", "6.5", "ETHUSDT"))
    assert one.records()[0] == (STATUS, CHANGED, 0, (0, -5, -1))


def test_what_arrives_after_the_last_line_was_removed_is_dropped(rig):
    one = live(rig)
    one.publisher.remove_stream(0, "book")
    one.feed(depth(101, 101, [("100.00", "7")]))
    assert one.records() == [] and one.publisher.counter("events_ignored") == 1
    with pytest.raises(ValueError, match="no book stream to remove"):
        one.publisher.remove_stream(0, "book")


# -- the ordering rule, against a slow book -------------------------------------------------------------------

class Oracle:
    """Binance spot's rules over a dict, one message at a time: what a reader may see after each."""

    def __init__(self):
        self.book, self.last, self.live = {}, 0, False

    def seed(self, last, levels):
        self.book, self.last, self.live = dict(levels), last, True

    def change(self, first, last, levels):
        if not self.live or last <= self.last:
            return
        if first > self.last + 1:
            self.live, self.book = False, {}
            return
        self.last = last
        for key, size in levels:
            if size:
                self.book[key] = size
            else:
                self.book.pop(key, None)


level_lists = st.lists(st.tuples(st.tuples(st.sampled_from([1, 2]), st.integers(1, 12)), st.integers(0, 3)), max_size=6)
steps = st.lists(st.tuples(st.sampled_from(["next", "next", "next", "next", "skip", "again", "seed"]), level_lists), max_size=40)


@settings(max_examples=150, deadline=None)
@given(steps)
def test_a_readers_book_is_the_oracles_and_no_level_follows_a_gap_without_reset(steps):
    one = Rig()
    try:
        one.add(price=0, size=0)
        oracle, books, update = Oracle(), {}, itertools.count(101)
        seen_last = 100
        for action, levels in steps:
            rows = {which: [(str(price), str(size)) for (side_, price), size in levels if side_ == which] for which in (1, 2)}
            if action == "seed":
                if oracle.live:
                    continue
                kept = {key: size for key, size in dict(levels).items() if size}
                rows = {which: [(str(price), str(size)) for (s, price), size in kept.items() if s == which] for which in (1, 2)}
                one.publisher.hold(0)
                assert one.publisher.snapshot(one.venue, 0, seed(seen_last, rows[1], rows[2]), NOW) == "LIVE"
                oracle.seed(seen_last, kept)
            else:
                if action == "skip":
                    next(update)
                first = seen_last if action == "again" else next(update)
                one.feed(depth(first, first, rows[1], rows[2]))
                if action != "again" or not oracle.live:
                    seen_last = max(seen_last, first)
                oracle.change(first, first, [(key, size) for which in (1, 2) for key, size in levels if key[0] == which])
            books_of(one.records(), books)
            assert (books.get(0) if oracle.live else books.get(0) or {}) == oracle.book
            assert (one.publisher.stream_stats(0, "book")[3] == "LIVE") == oracle.live
    finally:
        one.close()
