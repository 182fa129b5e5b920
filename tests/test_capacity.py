"""Budgets never spend above 80 % in any window; profiles are read and overridden."""
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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


@pytest.mark.parametrize("wire,delivered", [("trades-all", False), ("candle1m", False), ("books", True), ('{"channel":"candle1D","instId":"X"}', False)])
def test_a_named_refusal_beats_a_wildcard(wire, delivered):
    routing = [{"channel_glob": "trades-all", "delivered": False}, {"channel_glob": "candle*", "delivered": False}, {"channel_glob": "*", "delivered": True}]
    assert Profile.read({**profile(), "routing": routing}).delivered(wire) is delivered
