"""Several connections that carry one stream: each event is published once, in order, and only the loss of all of them is a gap.

The streams are those of venue_streams.py; what is published is compared with what one undisturbed connection publishes."""
import functools
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from test_counters import SESSIONS
from test_publisher import GAP, LAST, NOW, STATUS, TRADE, Rig, depth, live, rig, trade  # noqa: F401
from venue_streams import ALL, COUNT, Chained, Checked, MarksTogether, Trades, text

BOOK = 3
NOTICE_GAP = 2
LINE_MAX = 4


class Lines:
    """A publisher fed by connections that each bring the same stream, as far as they were asked to."""

    def __init__(self, kind, seed=0):
        self.stream = kind(seed)
        self.rig = Rig(self.stream.venue)
        self.stream.add(self.rig.publisher, self.rig.venue, lines=2)
        self.sent = 0               # messages the venue has sent
        self.todo = {}              # session: messages on their way
        self.next = 1

    def connect(self):
        session = self.next
        self.next += 1
        self.todo[session] = list(self.stream.join(self.sent))
        return session

    def send(self):
        self.sent += 1
        for queue in self.todo.values():
            queue.append(self.stream.message(self.sent))

    def deliver(self, session, count=1):
        for _ in range(min(count, len(self.todo[session]))):
            assert self.rig.publisher.feed(self.rig.venue, session, text(self.todo[session].pop(0)), NOW) >= 0

    def states(self, session):
        return {self.rig.publisher.line(0, channel, session, NOW) for channel in self.stream.channels}

    def met(self):
        return [session for session in self.todo if self.states(session) == {"met"}]

    def lose(self, session):
        del self.todo[session]
        self.rig.publisher.session_lost(session, [0])

    def drop(self, session):
        """Unsubscribe: what was on its way still arrives."""
        for channel in self.stream.channels:
            self.rig.publisher.drop_line(0, channel, session)
        for message in self.todo.pop(session):
            self.rig.publisher.feed(self.rig.venue, session, text(message), NOW)


@functools.cache
def undisturbed(kind, seed):
    """Records of one connection from the first message to the last."""
    one = Lines(kind, seed)
    one.connect()
    for _ in range(COUNT):
        one.send()
    one.stream.begin(one.rig.publisher, one.rig.venue)
    one.deliver(1, COUNT + 1)
    found = one.rig.records()
    one.rig.close()
    return found


def started(kind, seed=0):
    one = Lines(kind, seed)
    session = one.connect()
    one.stream.begin(one.rig.publisher, one.rig.venue)
    one.deliver(session, 1)
    one.send()
    one.deliver(session, 1)     # something is published, so that a second line has to meet it
    return one


def finished(one, kind, seed=0):
    """Everything is sent and delivered: what was published is what one undisturbed connection publishes."""
    while one.sent < COUNT:
        one.send()
    for session in sorted(one.todo):
        one.deliver(session, 2 * COUNT)
    assert by_channel(one.rig.records(), kind) == by_channel(undisturbed(kind, seed), kind)


def by_channel(records, kind):
    """Streams of one message (mark, index, funding) keep their own order each, not one among them."""
    return records if kind.book else sorted(records, key=lambda record: record[0])


@pytest.fixture
def lines():
    made = []

    def make(kind, seed=0):
        made.append(started(kind, seed))
        return made[-1]
    yield make
    for one in made:
        one.rig.close()


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(ALL), st.integers(0, 5), st.lists(st.tuples(st.integers(0, 6), st.integers(0, 7)), max_size=60))
def test_lines_publish_each_event_once_in_order_while_one_that_has_met_the_stream_stays(kind, seed, actions):
    """Random skew, joins, losses and unsubscriptions of up to four connections."""
    one = started(kind, seed)
    try:
        for what, which in actions:
            sessions = sorted(one.todo)
            session = sessions[which % len(sessions)]
            spare = any(other != session for other in one.met())
            if what <= 1 and one.sent < COUNT:
                one.send()
            elif what <= 3:
                one.deliver(session, 1 + which)
            elif what == 4 and len(sessions) < LINE_MAX:
                one.connect()
            elif what == 5 and spare:
                one.lose(session)
            elif what == 6 and spare:
                one.drop(session)
        finished(one, kind, seed)
    finally:
        one.rig.close()


def joining(lines, kind):
    """A second line that is ahead of the first by more than one message, and so has yet to meet what is published."""
    one = lines(kind)
    one.send()
    one.send()
    second = one.connect()
    assert one.states(second) == {"none"}
    for _ in range(4):
        one.send()
    one.deliver(second, 10)
    assert one.states(second) == {"joining"} and one.states(1) == {"met"}
    return one, second


@pytest.mark.parametrize("kind", ALL)
def test_a_line_that_is_ahead_joins_when_what_it_brought_first_is_published(lines, kind):
    one, second = joining(lines, kind)
    while one.states(second) == {"joining"}:
        one.deliver(1)
    assert one.states(second) == {"met"}
    one.lose(1)
    finished(one, kind)


@pytest.mark.parametrize("kind", ALL)
def test_the_last_line_that_met_the_stream_is_a_gap_when_it_is_lost(lines, kind):
    one, second = joining(lines, kind)
    published = len(one.rig.records())
    one.rig.publisher.notices()
    one.lose(1)
    records = one.rig.records()
    if kind.book:
        assert records == [(STATUS, GAP, 0, (BOOK, *records[0][3][1:]))]
        assert NOTICE_GAP in [notice[2] for notice in one.rig.publisher.notices()], "a line is left to resync on"
        return
    if kind is Trades:
        assert records[0] == (STATUS, GAP, 0, (0, 0, 0))
        assert records[1][1] == LAST | 8, "the first one behind the gap says so"
        records = [(record[0], LAST, *record[2:]) for record in records[1:]]
    left = (COUNT - one.sent) * len(kind.channels)
    assert by_channel(records, kind) == by_channel(undisturbed(kind, 0)[-len(records) - left:][:len(records)], kind) and len(records) >= 4
    assert published and one.states(second) == {"met"}


@pytest.mark.parametrize("kind", ALL)
def test_a_line_that_was_unsubscribed_counts_no_more_and_what_still_comes_of_it_is_a_duplicate(lines, kind):
    one = lines(kind)
    second = one.connect()
    one.send()
    for session in (1, second) * 2:
        one.deliver(session, 2)
        one.send()
    one.deliver(second)
    assert one.states(second) == {"met"}
    one.send()
    one.drop(1)
    assert one.states(1) == {"none"}
    finished(one, kind)


def test_a_line_that_subscribes_once_more_begins_anew(lines):
    one = lines(Trades)
    second = one.connect()
    one.send()
    one.deliver(second)
    one.deliver(1)
    one.rig.publisher.drop_line(0, "trade", 1)
    one.rig.feed(trade(2000), session=1)
    assert one.states(1) == {"none"}
    one.rig.publisher.join_line(0, "trade", 1)
    one.send()
    one.deliver(1)
    one.deliver(second)
    assert one.states(1) == {"met"}
    finished(one, Trades)


@pytest.mark.parametrize("kind", [Trades, Chained])
def test_a_line_that_is_removed_before_any_other_delivered_is_a_gap(lines, kind):
    one = lines(kind)
    one.send()
    one.deliver(1, 2)
    one.rig.records()
    for channel in one.stream.channels:
        one.rig.publisher.remove_stream(0, channel, 1)
    del one.todo[1]
    assert [record[1] for record in one.rig.records() if record[0] == STATUS] == [GAP]
    one.send()
    second = one.connect()
    one.send()
    one.deliver(second, 3)
    assert [record[1] for record in one.rig.records() if record[0] == STATUS].count(GAP) == 0, "it was told before"


def test_the_only_line_may_be_dropped_without_a_gap(lines):
    one = lines(Trades)
    one.rig.records()
    one.rig.publisher.drop_line(0, "trade", 1)
    assert one.rig.records() == []


def test_a_message_that_every_line_missed_is_a_gap_and_what_they_held_is_not_published(lines):
    one = lines(Chained)
    second = one.connect()
    one.deliver(second, 1)
    one.rig.records()
    for session in (1, second):
        one.todo[session] = [one.stream.message(n) for n in (3, 4)]
        assert one.rig.records() == []
        one.deliver(session, 1)
    assert one.rig.records() == [(STATUS, GAP, 0, (BOOK, 503, 506))]
    assert one.rig.publisher.book_stats(0)["held"] == 0


def test_a_line_ahead_waits_for_so_many_messages_and_no_longer(rig):
    one = live(rig)
    one.publisher.add_stream(one.venue, 0, "book", 0, "rest")
    for session in (1, 2):
        one.feed(depth(101, 101, [("100.00", "5")]), session)
    one.records()
    for update in range(103, 103 + 64):
        one.feed(depth(update, update, [("100.00", "6")]), session=1)
    assert one.records() == [] and one.publisher.book_stats(0)["held"] == 64
    one.feed(depth(167, 167), session=1)
    assert one.records() == [(STATUS, GAP, 0, (BOOK, 101, 167))]


def test_the_loss_of_the_line_that_others_waited_for_is_a_gap(rig):
    one = live(rig)
    one.publisher.add_stream(one.venue, 0, "book", 0, "rest")
    for session in (1, 2):
        one.feed(depth(101, 101, [("100.00", "5")]), session)
    one.feed(depth(103, 103, [("100.00", "6")]), session=1)
    one.records()
    one.publisher.session_lost(2, [0])
    assert one.records() == [(STATUS, GAP, 0, (BOOK, 102, 0))]


def test_a_line_that_lost_a_frame_of_a_book_without_numbers_has_to_join_again(lines):
    one = lines(Checked)
    second = one.connect()
    for _ in range(3):
        one.send()
    one.deliver(second, 10)
    one.deliver(1, 10)
    assert one.met() == [1, second]
    one.send()
    assert one.rig.publisher.feed(one.rig.venue, second, one.todo[second].pop(0)[:-5], NOW) < 0
    assert one.states(second) == {"joining"}
    for _ in range(3):
        one.send()
    one.deliver(second, 10)
    finished(one, Checked)


def test_line_statistics_say_who_was_first_and_by_how_much_the_other_was_behind(rig):
    one = rig()
    one.add(channels=("trade", "trade"))
    one.feed(trade(1), session=1, ts=NOW)
    for identity, (first, second), late in ((2, (1, 2), 300), (3, (2, 1), 500), (4, (1, 2), 700)):
        one.feed(trade(identity), session=first, ts=NOW + 1000 * identity)
        one.feed(trade(identity), session=second, ts=NOW + 1000 * identity + late)
    with open(f"{one.directory}/worker-0.counters", "rb") as file:
        rows = file.read()[SESSIONS:]
    found = [struct.unpack_from("<QQQQ", rows, 232 * session + 176) for session in (1, 2)]
    assert found == [(1, 1, 500, 1), (1, 2, 700, 1)], "the first arrival of 2 is not known: there was one line then"


def test_a_joining_line_without_room_joins_at_a_later_event(rig):
    one = rig()
    one.add(channels=("trade", "trade"))
    one.feed(trade(1), session=1)
    for identity in range(10, 10 + 4097):
        one.feed(trade(identity), session=2)
    assert one.publisher.line(0, "trade", 2) == "joining"
    for identity in range(2, 4106):
        one.feed(trade(identity), session=1)
    assert one.publisher.line(0, "trade", 2) == "joining"
    one.feed(trade(4107), session=2)
    one.feed(trade(4106), session=1)
    one.feed(trade(4107), session=1)
    assert one.publisher.line(0, "trade", 2) == "met"
    assert [words[2] for kind, _, _, words in one.records() if kind == TRADE] == list(range(1, 4108))


def test_held_events_follow_a_raised_exponent(rig):
    one = rig()
    one.add(price=0, size=0, channels=("trade", "trade"))
    one.feed(trade(1, "5", "1"), session=1)
    one.feed(trade(3, "7", "2"), session=2)
    one.feed(trade(2, "6.5", "1.25"), session=1)
    one.feed(trade(3, "7", "2"), session=1)
    assert [words[:3] for kind, _, _, words in one.records() if kind == TRADE] == [(5, 1, 1), (65, 125, 2), (70, 200, 3)]


def test_a_line_that_begins_inside_the_last_time_has_met_the_stream_when_that_time_is_over(lines):
    """A slow stream: its next message may be a minute away, but nothing more of the last time comes after a quarter second."""
    one = lines(MarksTogether)
    second = one.connect()
    one.todo[second] = [one.stream.message(one.sent)]    # the venue repeats the last value to who subscribes
    one.deliver(second)
    assert one.rig.publisher.line(0, "mark", second, NOW + 250_000_000) == "joining"
    assert one.rig.publisher.line(0, "mark", second, NOW + 250_000_001) == "met"
