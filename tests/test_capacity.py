"""Budgets never spend above 80 % in any window; a placement never exceeds a profile; what fits nowhere is named."""
import fnmatch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feedhandler.capacity import plan
from feedhandler.capacity.budget import SECOND, Budget, Credits, Rolling
from feedhandler.capacity.profile import Profile, Window, merge, rest_window

steps = st.lists(st.tuples(st.integers(0, 3 * SECOND), st.integers(1, 9)), max_size=120)


@settings(max_examples=150, deadline=None)
@given(steps, st.integers(1, 30), st.sampled_from([0.5, 1.0, 7.0]), st.integers(0, 119))
def test_no_window_wherever_it_begins_holds_more_than_80_percent_even_over_a_restart(steps, n, per_s, restart):
    budget, now, spent = Budget([Window(n, per_s), Window(4 * n, 8 * per_s)]), 10 * SECOND, []
    for index, (wait, want) in enumerate(steps):
        now += wait
        if index == restart:
            saved, budget = budget.dump(), Budget([Window(n, per_s), Window(4 * n, 8 * per_s)])
            budget.load(saved, now)
        granted = budget.take(now, want)
        assert granted <= want
        spent.append((now, granted))
    for count, span in ((n, per_s), (4 * n, 8 * per_s)):
        for begin, _ in spent:
            inside = sum(amount for at, amount in spent if begin <= at < begin + span * SECOND)
            assert inside <= max(1, count * 80 // 100)


@settings(max_examples=100, deadline=None)
@given(steps, st.integers(1, 20))
def test_what_was_refused_is_granted_at_the_time_the_budget_names_and_not_before(steps, n):
    budget, now = Budget([Window(n, 5.0)]), SECOND
    for wait, want in steps:
        now += wait
        ready = budget.ready_ns(now, 1)
        if budget.take(now, want) == 0:
            assert ready > now
            assert budget.take(ready - 1, 1) == 0
            assert budget.take(ready, 1) == 1
            now = ready


@settings(max_examples=100, deadline=None)
@given(steps)
def test_credits_never_go_below_zero_nor_refill_above_80_percent(steps):
    credits, now, spent = Credits(30_000, 10_000), SECOND, []
    for wait, want in steps:
        now += wait
        room = credits.room(now)
        assert 0 <= room <= 24_000
        if room >= want * 3000:
            credits.spend(now, want * 3000)
            spent.append((now, want * 3000))
    for begin, _ in spent:
        assert sum(amount for at, amount in spent if begin <= at < begin + SECOND) <= 24_000 + 8000 + 1


def test_nothing_is_spent_inside_a_ban_and_a_shorter_one_does_not_end_it():
    budget = Budget([Window(100, 1)])
    budget.ban(50 * SECOND, "429")
    budget.ban(20 * SECOND, "later but shorter")
    assert [budget.take(at, 1) for at in (0, 20 * SECOND, 50 * SECOND - 1, 50 * SECOND)] == [0, 0, 0, 1]
    again = Budget([Window(100, 1)])
    again.load(budget.dump(), 49 * SECOND)
    assert again.take(49 * SECOND, 1) == 0 and again.reason == "429"


def test_a_clock_that_jumped_back_frees_nothing():
    window = Rolling(10, 60)
    window.load([[1000 * SECOND, 8]], 5 * SECOND)
    assert window.room(5 * SECOND) == 0 and window.room(64 * SECOND) == 0 and window.room(65 * SECOND) == 8


def test_one_request_above_the_whole_limit_goes_alone():
    budget = Budget([Window(10, 1)])
    assert budget.take(0, 20, 20) == 20
    assert budget.take(SECOND - 1, 1) == 0
    assert budget.take(SECOND, 1) == 1


@pytest.mark.parametrize("rest,window", [
    ({"budget": "6000 weight/min/IP"}, Window(6000, 60)), ({"weight": "20 req/2s per IP+instType"}, Window(20, 2)),
    ({"weight": "20 requests per 2 s per IP and instType"}, Window(20, 2)), ({"weight": "1 req/s, burst 50"}, Window(50, 50)),
    ({"weight": 20}, None), ({}, None)])
def test_rest_budgets_are_read_from_the_profiles_sentences(rest, window):
    assert rest_window({"rest": rest}) == window


def profile(endpoint="e", **sub):
    return {"venue": "v", "endpoint": endpoint, "conn": {}, "sub": sub, "client_msg": {}}


def test_overrides_take_their_place_and_leave_the_original():
    first = profile(max_per_conn=100)
    merged = merge(first, {"max_per_conn": 5, "max_open": 3, "attempts": [{"n": 1, "per_s": 2.0}], "pace_ms": 7})
    typed = Profile.read(merged)
    assert (typed.max_per_conn, typed.max_open, typed.attempts, typed.pace_ms) == (5, 3, (Window(1, 2.0),), 7)
    assert first == profile(max_per_conn=100)
    with pytest.raises(ValueError, match="max_per_con'.*max_per_conn"):
        merge(first, {"max_per_con": 1})
    with pytest.raises(ValueError, match="expected a whole number above 0"):
        merge(first, {"max_per_conn": 0})


def want(wire, instrument, endpoint="e", line=0, rate=0.0):
    return plan.Wanted("v", endpoint, wire, instrument, f"S{instrument}", line, rate)


@settings(max_examples=120, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 25), st.sampled_from(["book", "book50", "trade", "quote"]), st.integers(0, 1)), unique=True, max_size=90),
       st.integers(1, 5), st.integers(2, 12), st.integers(1, 4), st.integers(20, 200), st.data())
def test_a_placement_never_exceeds_a_profile_and_a_smaller_one_moves_nothing(rows, workers, fill, books, chars, data):
    typed = Profile.read(profile(max_per_conn=fill, soft_by_channel={"book*": books}, exclusive=[["book-*", "book50-*"]], max_args_chars_per_conn=chars))
    wanted = [want(f"{channel}-{instrument}", instrument, line=line) for instrument, channel, line in rows]
    profiles = {("v", "e"): typed}
    placed = plan.place(wanted, profiles, workers)
    assert sorted(stream.key for connection in placed.connections for stream in connection.streams) == sorted(stream.key for stream in wanted)
    for connection in placed.connections:
        wires = [stream.wire for stream in connection.streams]
        assert 0 < len(wires) <= fill and sum(map(len, wires)) <= chars
        assert sum(fnmatch.fnmatch(wire, "book*") for wire in wires) <= books
        assert len({stream.line for stream in connection.streams}) == 1, "lines A and B never share a connection"
        assert all(placed.workers[stream.instrument] == connection.worker for stream in connection.streams), "an instrument has one worker"
        for stream in connection.streams:
            assert not (stream.wire.startswith("book-") and f"book50-{stream.instrument}" in wires)
    assert plan.place(wanted, profiles, workers) == placed, "deterministic"
    fewer = [stream for stream in wanted if data.draw(st.booleans())]
    home = {stream.key: connection.id for connection in placed.connections for stream in connection.streams}
    later = plan.place(fewer, profiles, workers, placed)
    assert all(home[stream.key] == connection.id for connection in later.connections for stream in connection.streams)


def test_instruments_are_spread_evenly_over_workers_and_streams_over_connections():
    typed = Profile.read(profile(max_per_conn=1024, soft_per_conn=10))
    placed = plan.place([want(f"{channel}-{i}", i) for i in range(30) for channel in ("a", "b")], {("v", "e"): typed}, 3)
    assert [list(placed.workers.values()).count(worker) for worker in range(3)] == [10, 10, 10]
    assert [len(connection.streams) for connection in placed.connections] == [10] * 6


def test_few_connections_an_address_keep_a_venue_on_few_workers():
    limited = {**profile(), "conn": {"max_open": 4, "counts_http": True}}   # 80 % of 4 is 3, one is for HTTP
    placed = plan.place([want(f"a-{i}", i) for i in range(40)], {("v", "e"): Profile.read(limited)}, 8)
    assert len(placed.connections) == 2 and set(placed.workers.values()) == {0, 1}


@pytest.mark.parametrize("streams,sub,conn,words", [
    ([want("long" * 9, 0)], {"max_args_chars_per_conn": 20}, {}, "alone is above"),
    ([want("a", 0), want("a", 1)], {}, {}, "wanted twice"),
    ([want("a", 0, "other")], {}, {}, "no endpoint 'other'"),
    ([want(f"a{i}", i) for i in range(9)], {"max_per_conn": 1}, {"max_open": 10}, "needs 9 connections, this address may hold 8"),
    ([want(f"a{i}", i) for i in range(9)], {"max_per_ip": 10}, {}, "needs 9 streams, this address may hold 8"),
])
def test_what_does_not_fit_is_named(streams, sub, conn, words):
    with pytest.raises(plan.PlanError, match=words):
        plan.place(streams, {("v", "e"): Profile.read({**profile(**sub), "conn": conn})}, 1)


@pytest.mark.parametrize("streams,sub,conn", [
    ([want("long" * 5, 0)], {"max_args_chars_per_conn": 20}, {}),
    ([want(f"a{i}", i) for i in range(8)], {"max_per_conn": 1}, {"max_open": 10}),
    ([want(f"a{i}", i) for i in range(8)], {"max_per_ip": 10}, {}),
])
def test_what_just_fits_is_placed(streams, sub, conn):
    plan.place(streams, {("v", "e"): Profile.read({**profile(**sub), "conn": conn})}, 1)


@pytest.mark.parametrize("wire,delivered", [("trades-all", False), ("candle1m", False), ("books", True), ('{"channel":"candle1D","instId":"X"}', False)])
def test_a_named_refusal_beats_a_wildcard(wire, delivered):
    routing = [{"channel_glob": "trades-all", "delivered": False}, {"channel_glob": "candle*", "delivered": False}, {"channel_glob": "*", "delivered": True}]
    assert Profile.read({**profile(), "routing": routing}).delivered(wire) is delivered
