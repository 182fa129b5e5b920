"""Faults of a venue, injected one by one into simulated ones, and what a reader sees of each: never a wrong book.

Every record of every instrument is checked against the market's own book (fault_support.Watcher), also of those that a
test does not touch: a wrong book, a doubled or silently lost event or a wrong number fails whatever test reads it.
"""
import time

import pytest

from fault_support import VENUES, Place, within_budgets

CLOSE_CODES = {"oversize": 1009, "masked": 1002, "rsv": 1002, "bad_utf8": 1007}
COUNTERS = {"oversize": "frames_oversize", "masked": "frames_protocol_error", "rsv": "frames_protocol_error", "bad_utf8": "frames_utf8_error"}
HALVES = (VENUES[0::2], VENUES[1::2])
RESYNC_S = 8.0
RECONNECT_S = 8.0


@pytest.fixture(scope="module")
def place():
    with Place(instruments=12, rate=1500) as place:
        place.watcher.until(lambda: all(seen.phase == "LIVE" for seen in place.watcher.seen.values()), "all books")
        yield place


def few():
    """Few instruments: each reconnect costs Binance spot 250 of the 4,800 REST weight a minute for every book."""
    with Place(instruments=1, rate=600) as place:
        place.watcher.until(lambda: all(seen.phase == "LIVE" for seen in place.watcher.seen.values()), "all books")
        yield place


small = pytest.fixture(few, scope="module", name="small")     # for frames that end a connection
lone = pytest.fixture(few, scope="module", name="lone")       # for connections and REST: a budget of its own


@pytest.fixture
def fresh(place):
    """An instrument of a venue that no test has disturbed yet."""
    used = place.__dict__.setdefault("used", set())

    def take(venue):
        seen = next(seen for (name, _), seen in place.watcher.seen.items() if name == venue and seen not in used)
        used.add(seen)
        return seen
    return take


def disturb(place, seen, kind, channel="book", **fields):
    """Inject a frame fault into the instrument's stream and wait until it was sent."""
    fault = place.fault(kind, venue=seen.market.venue, symbol=seen.market.symbol, channel=channel, **fields)
    place.watcher.until(lambda: fault.injected, f"{kind} is injected")
    return fault


# -- messages --------------------------------------------------------------------------------------------------

HASHED_TRIES, HASHED_S = 5, 1.5
LOSSES = [(kind, venue) for kind in ("drop", "reorder", "malformed") for venue in VENUES] + [("corrupt", "kraken")]


@pytest.mark.parametrize("kind, venue", LOSSES)
def test_a_lost_late_cut_or_corrupted_book_message_is_a_gap_then_a_new_book_and_nobody_else_is_disturbed(place, fresh, venue, kind):
    seen, malformed = fresh(venue), place.counter("frames_malformed")
    before, told, story = place.watcher.counts(but=[seen]), seen.gaps, len(seen.story)
    if kind == "malformed" and venue == "kraken":   # without numbers a book cannot know that the message was not its own
        before = {key: counts for key, counts in before.items() if key[0] != "kraken"}
    disturb(place, seen, kind)
    for _ in range(HASHED_TRIES if venue == "kraken" else 0):   # what lies below its ten hashed levels shows only when it comes up
        if not place.watcher.within(lambda: seen.gaps > told, HASHED_S):
            disturb(place, seen, kind)
    place.watcher.until(lambda: seen.gaps > told, "the gap is told", RESYNC_S)
    place.watcher.until(lambda: seen.phase == "LIVE", "the book is whole again", RESYNC_S)
    place.watcher.advance(3)
    assert seen.gaps == told + 1
    assert seen.story[story] == "GAP" and "RESET" in seen.story[story:] and seen.story[-1] == "LIVE"
    after = place.watcher.counts(but=[seen])
    assert {key: after[key] for key in before} == before
    assert place.counter("frames_malformed") - malformed == (kind == "malformed")


@pytest.mark.parametrize("venue", VENUES)
def test_doubled_and_fragmented_messages_change_nothing(place, fresh, venue):
    seen, before = fresh(venue), place.watcher.counts()
    trades = seen.trades
    for kind, channel in (("duplicate", "book"), ("duplicate", "trade"), ("fragment", "book"), ("fragment", "trade")):
        disturb(place, seen, kind, channel)
    place.watcher.advance(3)
    place.watcher.until(lambda: seen.trades > trades + 2, "trades go on")
    assert place.watcher.counts() == before


# -- connections -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("half", HALVES, ids=" ".join)
@pytest.mark.parametrize("kind", CLOSE_CODES)
def test_a_frame_against_the_protocol_ends_its_connection_with_the_right_code_and_disturbs_no_other(small, half, kind):
    watcher = small.watcher
    seen = {venue: [one for (name, _), one in watcher.seen.items() if name == venue] for venue in half}
    others = watcher.counts(but=[one for ones in seen.values() for one in ones])
    told = {one: one.gaps for ones in seen.values() for one in ones}
    counted = small.counter(COUNTERS[kind])
    for venue in half:
        small.fault(kind, venue=venue, channel="book")
    watcher.until(lambda: all(one.gaps > before for one, before in told.items()),
                  lambda: f"told to be broken: {[one.market.venue for one, before in told.items() if one.gaps == before]}", RECONNECT_S)
    watcher.until(lambda: all(one.phase == "LIVE" for venue in half for one in seen[venue]), "all books again", RECONNECT_S)
    small.until_all_live(RECONNECT_S)
    watcher.advance(2)
    assert watcher.counts(but=[one for ones in seen.values() for one in ones]) == others
    assert small.counter(COUNTERS[kind]) == counted + len(half)
    for venue in half:
        assert {row["close_code_last"] for row in small.sessions(venue)} == {CLOSE_CODES[kind]}


def all_books(place, venues=VENUES):
    return [one for (name, _), one in place.watcher.seen.items() if name in venues]


def lose_connections(place, kind, **fields):
    """One fault on every connection; when told of it, until everything is LIVE again. Answers how long that took."""
    told = {one: one.gaps for one in all_books(place)}
    begin = time.monotonic()
    for venue in VENUES:
        place.fault(kind, venue=venue, count=9, **fields)
    place.watcher.until(lambda: all(one.gaps > before for one, before in told.items()), lambda: f"every loss is told: {[(one.market.venue, one.market.symbol, one.story, one.phase) for one, before in told.items() if one.gaps == before]}", RECONNECT_S)
    place.watcher.until(lambda: all(one.phase == "LIVE" for one in told), "all books again", RECONNECT_S)
    took = time.monotonic() - begin
    place.until_all_live(RECONNECT_S)
    assert all(one.gaps == before + 1 for one, before in told.items())
    return took


@pytest.mark.parametrize("kind, fields, code", [("reset", {}, 1006), ("disconnect", {"code": 1001}, 1001), ("disconnect", {"code": 4006}, 4006)])
def test_lost_connections_are_told_and_made_again(lone, kind, fields, code):
    assert lose_connections(lone, kind, **fields) < RECONNECT_S
    assert {row["close_code_last"] for venue in VENUES for row in lone.sessions(venue)} == {code}
    lone.watcher.advance(2)


def test_an_announced_cut_is_not_waited_for(lone):
    """The venue says that it will close: within seconds another connection has what it carried, and nothing is a gap."""
    announcing = [venue for venue in VENUES if venue != "kraken"]   # Kraken says maintenance, and keeps its connections
    left = {row["connection"] for venue in announcing for row in lone.sessions(venue)}
    told = {one: one.gaps for one in all_books(lone)}
    for venue in announcing:
        lone.fault("notice", venue=venue)
    lone.watcher.until(lambda: not left & {row["connection"] for venue in announcing for row in lone.sessions(venue)},
                        lambda: f"left by us: {[(row['venue'], row['connection']) for venue in announcing for row in lone.sessions(venue)]}")
    lone.until_all_live()
    lone.watcher.advance(2)
    assert {one: one.gaps for one in all_books(lone)} == told


def test_refused_connections_are_tried_again_within_the_budget_of_attempts(lone):
    refused = lone.simulator.connections_refused
    for venue in VENUES:
        lone.fault("refuse", venue=venue, seconds=2.0)
    assert lose_connections(lone, "reset") < 2.0 + RECONNECT_S
    assert lone.simulator.connections_refused >= refused + len(VENUES)
    assert not within_budgets(lone.usage())


@pytest.mark.parametrize("status", [429, 418, 503])
def test_refused_snapshots_are_asked_for_again_when_the_venue_allows_it(lone, status):
    venues = ["binance-usdm", "binance-coinm"]     # a refused request costs its weight too, and spot's would last a minute
    books = [next(one for (name, _), one in lone.watcher.seen.items() if name == venue) for venue in venues]
    answers = dict(lone.simulator.rest_answers)
    for one in books:
        lone.fault("rest_error", venue=one.market.venue, code=status, seconds=2.5)
        disturb(lone, one, "drop")
    lone.watcher.until(lambda: all(lone.simulator.rest_answers[f"{venue}: {status}"] for venue in venues), "the refusals")
    document = lone.document("status")
    banned = [row["budget"] for row in document["budgets"] if "banned_until_ns" in row and row["budget"].startswith("rest")]
    assert len(banned) == len(venues), document["budgets"]
    assert sum(str(status) in reason for reason in document["reasons"]) >= len(venues)
    lone.watcher.until(lambda: all(one.phase == "LIVE" for one in books), "all books again")
    lone.until_all_live()
    for venue in venues:   # Retry-After was 1 s, the refusals lasted 2.5 s
        assert 1 <= lone.simulator.rest_answers[f"{venue}: {status}"] - answers.get(f"{venue}: {status}", 0) <= 4
    assert not within_budgets(lone.usage())


def test_a_snapshot_that_is_garbage_is_counted_and_fetched_again(lone):
    side = lone.simulator.sides["binance-usdm"]
    one, right, given = next(one for one in all_books(lone, ["binance-usdm"])), side.depth_body, []

    def garbage(*arguments):
        body = right(*arguments)
        given.append((b"<html>busy</html>", body[:len(body) // 2])[len(given)])
        if len(given) == 2:
            side.depth_body = right
        return given[-1]
    lone.call(setattr, side, "depth_body", garbage)
    malformed = lone.counter("frames_malformed")
    disturb(lone, one, "drop")
    lone.watcher.until(lambda: len(given) == 2 and one.phase == "LIVE", lambda: f"a whole book after {given}")
    assert lone.counter("frames_malformed") >= malformed + 2


# -- subscriptions ---------------------------------------------------------------------------------------------

FIRST_DATA_S = 2.0
SILENT, UNANSWERED, REFUSED, UNKNOWN = 0, 1, 2, 3     # which instrument of each venue has which fault


def faulty_subscribes(simulator):
    for name, side in simulator.sides.items():
        symbols = list(side.instruments)
        simulator.faults.add("silent", venue=name, symbol=symbols[SILENT], channel="book", count=99)
        simulator.faults.add("ack_lost", venue=name, symbol=symbols[UNANSWERED], channel="book")
        simulator.faults.add("reject", venue=name, symbol=symbols[REFUSED], channel="book", count=99)
        forget(side, symbols[UNKNOWN])


def forget(side, symbol):
    """Listed by REST, unknown to the WebSocket: delisted a moment ago."""
    make = side.make_stream
    side.make_stream = lambda endpoint, wire: None if symbol.lower() in wire.lower() else make(endpoint, wire)


def short_deadlines(text, simulator):
    for venue in VENUES:
        text = text.replace(f"[venues.{venue}]\n", f"[venues.{venue}]\nfirst_data_s = {FIRST_DATA_S}\n")
    return text


def test_every_stream_ends_live_or_in_a_named_state_with_its_reason_whatever_the_venue_answers():
    with Place(instruments=6, rate=600, prepare=faulty_subscribes, config=short_deadlines, ready=False) as place:
        faulty = {}
        for venue in VENUES:
            symbols = list(place.simulator.sides[venue].instruments)
            faulty.update({(venue, symbols[index], "book"): index for index in (SILENT, REFUSED, UNKNOWN)})
            faulty.update({(venue, symbols[UNKNOWN], channel): UNKNOWN for channel in ("quote",)})
            faulty.update({(venue, symbols[UNKNOWN], "trade"): None})

        def settled(streams):
            return len(streams) == 6 * 6 * 3 and all(
                row["state"] == ("REJECTED" if faulty[key] is not None else row["state"]) if key in faulty else row["state"] == "LIVE"
                for key, row in streams.items())
        streams = place.until_streams(settled, "every stream is LIVE or REJECTED", 16.0)
        for key, index in faulty.items():
            assert index is None or streams[key]["reason"], key
        assert all("no data" in streams[key]["reason"] for key, index in faulty.items() if index == SILENT)
        assert not within_budgets(place.usage())
