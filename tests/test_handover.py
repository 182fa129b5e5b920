"""An instrument changes its owner: what readers of two rings get together is what one undisturbed worker publishes.

Two publishers on one directory stand for two workers. The streams are those of venue_streams.py; what is published is read with the
real feed, which follows the instrument from ring to ring."""
import contextlib
import functools
import time

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import feedhandler
from feedhandler import venues
from feedhandler.worker import handover as dead
from market_place import place
from ring_support import Feed
from venue_streams import ALL, COUNT, NOW, Chained, Deltas, Marks, MarksTogether, Quotes, Trades, Windows, text

EXACT = (Trades, Quotes, Marks, MarksTogether, Deltas, Chained, Windows)    # the others are switched by a snapshot
GAP, MOVED_OUT, MOVED_IN, CHANGED = "GAP", "MOVED_OUT", "MOVED_IN", "INSTRUMENT_CHANGED"
NOTICE_FIRST_DATA, NOTICE_GAP, NOTICE_LIVE = 1, 2, 3


class Worker:
    """One publisher with its own decoder, and its own connection to the stream."""

    def __init__(self, publisher, kind, seed, private=0, session=1, **exponents):
        self.publisher, self.stream, self.session = publisher, kind(seed), session
        self.venue = venues.load(self.stream.venue, 64)
        self.stream.add(publisher, self.venue, private=private, **exponents)
        self.at = 0

    def begin(self, at=0, rest=True):
        """Connect behind message at of the venue."""
        self.at = at
        for message in self.stream.join(at):
            self.feed(message)
        if rest:
            self.stream.begin(self.publisher, self.venue, at)
        return self

    def feed(self, message):
        assert self.publisher.feed(self.venue, self.session, text(message), NOW) >= 0

    def to(self, until):
        """Deliver up to message until."""
        while self.at < until:
            self.at += 1
            self.feed(self.stream.message(self.at))
        return self

    def floors(self):
        return {channel: of["floor"] for channel, of in self.publisher.ready(0, NOW)["channels"].items()}


def fields(record):
    """What a record says: not where and when it was received."""
    return {name: value for name, value in record.as_dict().items() if name not in ("ts_recv_ns", "ring", "position")}


def read(feed):
    """Everything of instrument 0 that is there, by way of the real feed."""
    found = [fields(record) for record in feed.records(timeout=0) if record.instrument == 0]
    return found


def statuses(records):
    return [record["code"] for record in records if record["kind"] == "status"]


def data(records, kind):
    """Records with values. Streams that come in one message keep their own order each, not one among them."""
    found = [record for record in records if record["kind"] != "status"]
    return found if kind.book else sorted(found, key=lambda record: record["kind"])


def final(records):
    """The book a reader has in the end: {(side, price): size}; None: not valid."""
    book = None
    for record in records:
        if record["kind"] == "status" and record["code"] == GAP:
            book = None
        if record["kind"] == "level":
            if "RESET" in record["flags"]:
                book = {}
            book[record["side"], float(record["price"])] = float(record["size"])
    return book and {key: size for key, size in book.items() if size}


@contextlib.contextmanager
def instance(kind, workers=2, price=-1, size=-2):
    """(directory, publishers, feed) of an instance with instrument 0."""
    with place(workers=workers, slot_count=1024, level_max=64) as (directory, instruments, publishers):
        stream = kind()
        instruments.put(0, stream.venue, stream.symbol, "X-Y", price, size)
        with feedhandler.attach("test", directory=directory) as feed:
            yield directory, publishers, feed


@functools.cache
def undisturbed(kind, seed):
    with instance(kind, 1) as (_, (publisher,), feed):
        Worker(publisher, kind, seed).begin().to(COUNT)
        publisher.turn()
        return read(feed)


def moved(old, new, to_worker=1):
    """let_go() as often as it takes, and take_over() of its answer as it comes over the wire."""
    while (handed := old.publisher.let_go(0, to_worker, new.floors())) is None:
        old.to(old.at + 1)
    handed = msgspec.msgpack.decode(msgspec.msgpack.encode(handed))
    return new.publisher.take_over(new.venue, 0, 1 - to_worker, handed)


def check(records, kind, seed):
    """Nothing lost, nothing doubled, in order; of a book without numbers: the same book."""
    if kind in EXACT:
        assert data(records, kind) == data(undisturbed(kind, seed), kind)
    else:
        assert final(records) == final(undisturbed(kind, seed))
    assert GAP not in statuses(records)


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(ALL), st.integers(0, 3), st.integers(0, 4), st.integers(1, 9), st.integers(0, 9), st.sampled_from((0, 1, 3)))
def test_a_move_loses_and_doubles_nothing_wherever_the_two_workers_are(kind, seed, start, old_at, new_at, back):
    with instance(kind) as (_, publishers, feed):
        old = Worker(publishers[0], kind, seed).begin().to(start + old_at)
        new = Worker(publishers[1], kind, seed, private=1).begin(start, rest=False).to(start + new_at)
        state = moved(old, new)
        assert state == ("LIVE" if kind.book else "NONE")
        for _ in range(back):       # there and back again, while messages arrive at both
            old.to(min(old.at + 2, COUNT))
            new.to(min(new.at + 1, COUNT))
            assert moved(new, old, 0) == state
            assert moved(old, new) == state
        new.to(COUNT)
        old.to(COUNT)
        publishers[1].turn()
        records = read(feed)
        check(records, kind, seed)
        assert [code for code in statuses(records) if code.startswith("MOVED")] == [MOVED_OUT, MOVED_IN] * (1 + 2 * back)


def killed(publisher, directory, number, at):
    """The worker died inside its last message: what it committed from ring position at on never was."""
    with open(f"{directory}/worker-{number}.ring", "r+b") as file:
        for position in range(at, publisher.position):
            file.seek(4096 + 64 * position)
            file.write(bytes(8))


@settings(max_examples=80, deadline=None)
@given(st.sampled_from(ALL), st.integers(0, 3), st.integers(1, 6), st.integers(1, 10), st.integers(0, 10), st.integers(0, 8), st.booleans())
def test_a_standby_follows_a_worker_that_died_at_any_record_and_loses_and_doubles_nothing(kind, seed, start, old_at, new_at, torn, flushed):
    with instance(kind) as (directory, publishers, feed):
        publishers[0].turn()
        old = Worker(publishers[0], kind, seed).begin()
        publishers[0].backed(0, True)
        start |= kind is MarksTogether      # a standby that began inside a time follows exactly once that is over
        old.to(start)
        new = Worker(publishers[1], kind, seed, private=1).begin(start)
        old.to(start + old_at - 1)
        if flushed:
            publishers[0].turn()
        before = publishers[0].position
        old.to(start + old_at)
        new.to(start + new_at)
        killed(publishers[0], directory, 0, max(before, publishers[0].position - torn))
        handed = dead.scan(directory, 0, [0])
        # A snapshot behind the last message that left a record in the ring cannot be told from one ahead of the dead owner.
        assume(kind is not Deltas or handed[0]["book"]["last"] >= 1000 + 2 * start)
        assert new.publisher.take_over(new.venue, 0, 0, handed[0]) == ("LIVE" if kind.book else "NONE")
        new.to(COUNT)
        publishers[1].turn()
        check_followed(read(feed), kind, seed)


def check_followed(records, kind, seed):
    """The same, where a standby went on with a book of its own."""
    assert GAP not in statuses(records)
    if kind is Deltas:          # its own snapshot may differ in the deep of the book: it tells every change
        assert final(records) == final(undisturbed(kind, seed))
        assert [record for record in data(records, kind) if record["kind"] == "touch"] == [
            record for record in data(undisturbed(kind, seed), kind) if record["kind"] == "touch"]
    else:
        check(records, kind, seed)


# -- letting go and taking over -------------------------------------------------------------------------------

def pair(publishers, kind, seed=0, at=4, new_at=4):
    old = Worker(publishers[0], kind, seed).begin().to(at)
    return old, Worker(publishers[1], kind, seed, private=1).begin(1, rest=False).to(new_at)


@pytest.mark.parametrize("kind", [Trades, Quotes, Marks, Deltas, Chained, Windows])
def test_nothing_is_let_go_that_the_other_side_does_not_hold(kind):
    with instance(kind) as (_, publishers, feed):
        old = Worker(publishers[0], kind, 0).begin().to(3)
        new = Worker(publishers[1], kind, 0, private=1).begin(5, rest=False).to(7)
        position = publishers[0].position
        assert publishers[0].let_go(0, 1, new.floors()) is None and publishers[0].position == position
        old.to(6 + (kind is Marks))     # of a time, something behind it
        assert publishers[0].let_go(0, 1, new.floors()) is not None


def test_both_halves_may_be_asked_for_twice():
    with instance(Chained) as (_, publishers, feed):
        old, new = pair(publishers, Chained)
        handed = publishers[0].let_go(0, 1, new.floors())
        positions = [publisher.position for publisher in publishers]
        assert publishers[0].let_go(0, 1, {}) == handed
        assert publishers[0].position == positions[0]
        assert new.publisher.take_over(new.venue, 0, 0, handed) == "LIVE"
        position = publishers[1].position
        assert new.publisher.take_over(new.venue, 0, 0, handed) == "LIVE" and publishers[1].position == position


def test_a_private_instrument_writes_nothing_but_notices():
    with instance(Chained) as (_, publishers, feed):
        new = Worker(publishers[1], Chained, 0, private=1).begin().to(5)
        publishers[1].status(0, 3)
        new.feed(new.stream.message(9))     # a gap
        publishers[1].session_lost(1, [0])
        publishers[1].resubscribed(0, "book")
        new.begin(9)
        publishers[1].turn()
        assert {NOTICE_FIRST_DATA, NOTICE_GAP, NOTICE_LIVE} <= {notice[2] for notice in publishers[1].notices()}
        assert read(feed) == [] and feed.quote(0) is None and feed.book(0) is None
        assert publishers[1].ready(0)["book"]


def test_the_row_goes_with_the_instrument_and_shows_its_last_values():
    with instance(Deltas) as (_, publishers, feed):
        old, new = pair(publishers, Deltas)
        publishers[0].turn()
        before = feed.book(0)
        handed = publishers[0].let_go(0, 1, new.floors())
        between = feed.quote(0)
        assert (between.ring, between.position) == (1, 1), "everything that the new owner's ring will hold of it is later"
        new.publisher.take_over(new.venue, 0, 0, handed)
        after, quote = feed.book(0), feed.quote(0)
        assert (after.ring, after.bids, after.asks, after.sequence) == (1, before.bids, before.asks, before.sequence)
        assert quote.position == publishers[1].position and quote.bid_price == between.bid_price
        old.to(6)
        publishers[0].turn()
        assert feed.book(0).sequence == after.sequence, "the old owner writes it no more"


@pytest.mark.parametrize("state", ["GAP", "SYNCING", "PENDING"])
def test_a_book_that_is_not_live_moves_as_it_is_and_is_resynced_by_its_new_owner(state):
    with instance(Deltas) as (_, publishers, feed):
        old, new = pair(publishers, Deltas)
        if state == "GAP":
            old.feed(old.stream.message(8))
        if state != "GAP":
            publishers[0].resubscribed(0, "book")
        if state == "SYNCING":
            publishers[0].hold(0)
        handed = publishers[0].let_go(0, 1, new.floors())
        publishers[1].notices()
        assert new.publisher.take_over(new.venue, 0, 0, handed) == "GAP"
        assert statuses(read(feed)).count(GAP) == 1, "it is told once"
        assert NOTICE_GAP in [notice[2] for notice in publishers[1].notices()]
        publishers[1].hold(0)
        assert publishers[1].snapshot(new.venue, 0, new.stream.rest(4), NOW) == "LIVE"
        new.to(COUNT)
        publishers[1].turn()
        assert final(read(feed)) == final(undisturbed(Deltas, 0))


def test_a_standby_with_a_live_book_gives_it_to_readers_of_a_broken_one():
    with instance(Chained) as (_, publishers, feed):
        old, new = pair(publishers, Chained)
        old.feed(old.stream.message(8))
        handed = publishers[0].let_go(0, 1, new.floors())
        assert new.publisher.take_over(new.venue, 0, 0, handed) == "LIVE"
        new.to(COUNT)
        publishers[1].turn()
        records = read(feed)
        assert statuses(records)[-1] == "LIVE" and final(records) == final(undisturbed(Chained, 0))


@pytest.mark.parametrize("kind", [Trades, Quotes, Deltas, Chained])
@pytest.mark.parametrize("finer", [0, 1])
def test_the_finer_exponents_of_both_sides_hold_after_a_move(kind, finer):
    with instance(kind, price=-1 - 2 * (not finer), size=-2 - 2 * (not finer)) as (_, publishers, feed):
        old = Worker(publishers[0], kind, 0, **({"price": -3, "size": -4} if finer == 0 else {})).begin().to(4)
        new = Worker(publishers[1], kind, 0, private=1, **({"price": -3, "size": -4} if finer == 1 else {})).begin(1, rest=False).to(6)
        assert moved(old, new) in ("LIVE", "NONE")
        new.to(COUNT)
        publishers[1].turn()
        records = read(feed)
        assert (CHANGED in statuses(records)) == (finer == 1), "readers hear of it where what they know is too coarse"
        assert new.venue.exponents(0) == (-3, -4) and publishers[1].notices()
        if kind.book:
            assert {key: size for key, size in final(records).items()} == final(undisturbed(kind, 0))
        else:
            values = [float(record["price" if kind is Trades else "bid_price"]) for record in data(records, kind)]
            assert values == [91.0 + n for n in range(COUNT)]


def test_what_is_kept_in_private_goes_after_two_seconds_into_the_book_and_the_floor():
    with instance(Chained) as (_, publishers, feed):
        new = Worker(publishers[1], Chained, 0, private=1).begin().to(5)
        assert publishers[1].ready(0)["channels"]["book"]["floor"] == 500, "its snapshot"
        publishers[1].turn()        # now the clocks are tied: the frames of 2023 are old
        publishers[1].turn()
        assert publishers[1].ready(0)["channels"]["book"]["floor"] == 515
        old = Worker(publishers[0], Chained, 0).begin().to(6)
        handed = publishers[0].let_go(0, 1, new.floors())
        assert new.publisher.take_over(new.venue, 0, 0, handed) == "LIVE"
        new.to(COUNT)
        publishers[1].turn()
        check(read(feed), Chained, 0)


def test_without_a_supervisor_what_is_kept_in_private_is_kept_until_the_next_one_can_have_come():
    with instance(Trades) as (_, publishers, feed):
        new = Worker(publishers[1], Trades, 0, private=1)
        publishers[1].supervised(False)
        publishers[1].turn()
        for number in (1, 2):
            publishers[1].feed(new.venue, 1, text(new.stream.message(number)), time.time_ns() - 5 * 10**9)
        publishers[1].turn()
        assert new.floors() == {"trade": 1001}
        publishers[1].supervised(True)
        publishers[1].turn()
        assert new.floors() == {"trade": 1002}, "two seconds are over"


def test_a_standby_that_let_go_of_what_the_dead_owner_had_not_published_says_gap_and_has_the_book():
    with instance(Chained) as (directory, publishers, feed):
        Worker(publishers[0], Chained, 0).begin().to(3)
        new = Worker(publishers[1], Chained, 0, private=1).begin().to(8)
        publishers[1].turn()
        publishers[1].turn()
        assert new.publisher.take_over(new.venue, 0, 0, dead.scan(directory, 0, [0])[0]) == "LIVE"
        new.to(COUNT)
        publishers[1].turn()
        records = read(feed)
        assert statuses(records).count(GAP) == 1 and final(records) == final(undisturbed(Chained, 0))


def test_trades_that_nobody_holds_any_more_are_a_gap():
    with instance(Trades) as (directory, publishers, feed):
        Worker(publishers[0], Trades, 0).begin().to(3)
        new = Worker(publishers[1], Trades, 0, private=1).begin(5).to(8)
        new.publisher.take_over(new.venue, 0, 0, dead.scan(directory, 0, [0])[0])
        publishers[1].turn()
        records = read(feed)
        assert statuses(records) == [MOVED_IN, GAP] and "GAP_BEFORE" in data(records, Trades)[3]["flags"]
        assert [record["trade_id"] for record in data(records, Trades)] == [1001, 1002, 1003, 1006, 1007, 1008]


@pytest.mark.parametrize("dies", [False, True])
def test_trades_of_before_the_owner_began_are_not_told_by_who_follows(dies):
    with instance(Trades) as (directory, publishers, feed):
        new = Worker(publishers[1], Trades, 0, private=1).begin().to(8)
        old = Worker(publishers[0], Trades, 0).begin(4).to(6)
        if dies:
            new.publisher.take_over(new.venue, 0, 0, dead.scan(directory, 0, [0])[0])
        else:
            moved(old, new)
        publishers[1].turn()
        assert [record["trade_id"] for record in data(read(feed), Trades)] == [1005, 1006, 1007, 1008]


@pytest.mark.parametrize("dies", [False, True])
def test_trades_that_a_told_gap_left_out_are_not_told_later_by_who_follows(dies):
    with instance(Trades) as (directory, publishers, feed):
        new = Worker(publishers[1], Trades, 0, private=1).begin().to(8)
        old = Worker(publishers[0], Trades, 0).begin().to(2)
        publishers[0].session_lost(1, [0])
        old.begin(5).to(7)
        if dies:
            new.publisher.take_over(new.venue, 0, 0, dead.scan(directory, 0, [0])[0])
        else:
            moved(old, new)
        publishers[1].turn()
        records = read(feed)
        assert [record["trade_id"] for record in data(records, Trades)] == [1001, 1002, 1006, 1007, 1008]
        assert statuses(records).count(GAP) == 1


@pytest.mark.parametrize("backed", [False, True])
def test_what_the_row_says_of_quotes_of_another_ring_is_not_believed(backed):
    """The first owner wrote into the row and far into its ring; the second is followed when it dies."""
    with instance(Quotes) as (directory, publishers, feed):
        publishers[0].turn()
        for _ in range(40):
            publishers[0].status(None, 13)
        old, new = pair(publishers, Quotes, at=3, new_at=1)
        publishers[0].backed(0, True)
        old.to(4)
        assert moved(old, new) == "NONE"
        publishers[1].backed(0, backed)
        new.to(9)
        publishers[1].turn()
        old.to(11)
        old.publisher.take_over(old.venue, 0, 1, dead.scan(directory, 1, [0])[0])
        old.to(COUNT)
        publishers[0].turn()
        records = read(feed)
        told = [record for record in data(records, Quotes)]
        whole = data(undisturbed(Quotes, 0), Quotes)
        assert told == (whole if backed else whole[:9] + whole[11:]), "what is not known to be new is not told twice"


@pytest.mark.parametrize("again", [False, True])
def test_a_standby_whose_connection_is_down_when_its_owner_dies_says_gap(again):
    with instance(Trades) as (directory, publishers, feed):
        Worker(publishers[0], Trades, 0).begin().to(3)
        new = Worker(publishers[1], Trades, 0, private=1).begin().to(3)
        publishers[1].session_lost(1, [0])
        if again:
            publishers[1].resubscribed(0, "trade")
        new.publisher.take_over(new.venue, 0, 0, dead.scan(directory, 0, [0])[0])
        new.begin(6).to(8)
        publishers[1].turn()
        records = read(feed)
        assert statuses(records) == [MOVED_IN, GAP]
        assert [record["trade_id"] for record in data(records, Trades)] == [1001, 1002, 1003, 1007, 1008]


def test_more_than_the_pool_holds_lets_go_of_the_oldest():
    with instance(Trades) as (_, publishers, feed):
        new = Worker(publishers[1], Trades, 0, private=1)
        for number in range(1, 65536 + 101):
            new.feed(new.stream.message(number))
        assert new.floors() == {"trade": 1100}


def test_who_follows_a_worker_that_died_right_after_a_move_looks_into_the_ring_before():
    with instance(Trades, workers=3) as (directory, publishers, feed):
        old, new = pair(publishers, Trades, at=5, new_at=2)
        third = Worker(publishers[2], Trades, 0, private=1).begin(2, rest=False).to(9)
        assert moved(old, new) == "NONE"        # and it dies without having published anything
        handed = dead.scan(directory, 1, [0])[0]
        third.publisher.take_over(third.venue, 0, 1, handed)
        third.to(COUNT)
        publishers[2].turn()
        records = read(feed)
        check(records, Trades, 0)
        assert statuses(records) == [MOVED_OUT, MOVED_IN, MOVED_IN]
        assert dead.scan(directory, 0, [0]) == {}, "it had left that one"


@pytest.mark.parametrize("kind", [Trades, Quotes, Marks, Deltas, Chained, Windows])
def test_an_instrument_is_taken_back_from_a_worker_that_died_before_it_took_it(kind):
    with instance(kind) as (_, publishers, feed):
        old, new = pair(publishers, kind)
        handed = publishers[0].let_go(0, 1, new.floors())
        old.to(9)
        assert publishers[0].take_over(old.venue, 0, 1, handed) == ("LIVE" if kind.book else "NONE")
        old.to(COUNT)
        publishers[0].turn()
        records = read(feed)
        check(records, kind, 0)
        assert [code for code in statuses(records) if code.startswith("MOVED")] == [MOVED_OUT, MOVED_IN]


@pytest.mark.parametrize("kind", [Trades, Quotes, Marks, Deltas, Chained, Windows])
def test_an_owner_that_died_with_its_answer_is_followed_by_whom_it_let_go_for(kind):
    with instance(kind, workers=3) as (directory, publishers, feed):
        publishers[0].turn()
        old = Worker(publishers[0], kind, 0).begin().to(4)
        new = Worker(publishers[1], kind, 0, private=1).begin(1).to(6)
        assert publishers[0].let_go(0, 1, new.floors())
        assert dead.scan(directory, 0, [0]) == dead.scan(directory, 0, [0], 2) == {}, "it had left for another one"
        assert new.publisher.take_over(new.venue, 0, 0, dead.scan(directory, 0, [0], 1)[0]) == ("LIVE" if kind.book else "NONE")
        new.to(COUNT)
        publishers[1].turn()
        records = read(feed)
        check_followed(records, kind, 0)
        assert [code for code in statuses(records) if code.startswith("MOVED")] == [MOVED_OUT, MOVED_IN]


def test_a_book_of_whose_owner_nothing_is_known_is_told_whole():
    with instance(Chained) as (_, publishers, feed):
        new = Worker(publishers[1], Chained, 0, private=1).begin().to(8)
        assert new.publisher.take_over(new.venue, 0, 0, None) == "LIVE"
        new.to(COUNT)
        publishers[1].turn()
        assert final(read(feed)) == final(undisturbed(Chained, 0))


def test_a_private_book_is_seeded_from_rest_where_what_is_kept_goes_on_from_it():
    with instance(Deltas) as (_, publishers, feed):
        new = Worker(publishers[1], Deltas, 0, private=1).begin(2, rest=False).to(6)
        publishers[1].hold(0)
        assert publishers[1].snapshot(new.venue, 0, new.stream.rest(1), NOW) == "SYNCING", "older than the first one kept"
        assert publishers[1].snapshot(new.venue, 0, new.stream.rest(4), NOW) == "LIVE"
        assert publishers[1].ready(0)["book"] and publishers[1].position == 0
        old = Worker(publishers[0], Deltas, 0).begin().to(3)
        assert moved(old, new) == "LIVE", "older than its own snapshot"
        new.to(COUNT)
        publishers[1].turn()
        check(read(feed), Deltas, 0)


def test_batches_and_the_feed_of_c_read_moves_in_the_same_order():
    with instance(Trades) as (directory, publishers, feed):
        with feedhandler.attach("test", directory=directory) as batches:
            low = Feed(directory)
            old, new = pair(publishers, Trades)
            for turn in range(4):
                assert moved(*((old, new) if turn % 2 == 0 else (new, old)), to_worker=1 - turn % 2) == "NONE"
                old.to(old.at + 2)
                new.to(new.at + 3)
            ids = []
            while len(batch := batches.poll(timeout=0)):
                ids += batch.records[batch.kind == 1]["trade_id"].tolist()
            lower = []
            while (answer := low.poll(3))[0] in (0, 4):
                lower += [record[9] for record in answer[2] if record[4] == 1]
            low.close()
            assert ids == lower == [record["trade_id"] for record in data(read(feed), Trades)]
            assert ids == list(range(1001, 1001 + len(ids))) and len(ids) > 10
