"""Budgets never spend above 80 % in any window; profiles are read and overridden."""
import dataclasses

import pytest

from hypothesis import given, settings
from hypothesis import strategies as st

from feedhandler import config, venues
from feedhandler.capacity.budget import SECOND, Budget, Credits, Rolling
from feedhandler.capacity.profile import Profile, Window, described, merge, rest_window

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


def test_the_room_of_a_budget_is_what_each_window_has_left_and_not_one_windows_use_against_anothers_limit():
    budget, now = Budget([Window(100, 1), Window(300, 300)]), 10 * SECOND        # 80 and 240
    assert budget.take(now, 78) == 78 and budget.room(now) == 2
    now += 2 * SECOND
    assert budget.room(now) == 80, "the short window is empty again"
    assert [budget.take(now + second * SECOND, 80) for second in (0, 2)] == [80, 80] and budget.room(now + 4 * SECOND) == 2
    assert Budget().room(now) > 10**9


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


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, SECOND), st.integers(1, 3), st.integers(0, 5 * SECOND)), max_size=40), st.integers(2, 12))
def test_attempts_that_arrive_late_keep_the_window_when_those_on_their_way_are_counted(steps, n):
    """A grant arrives at the venue within its validity or while it is pending; it counts from its arrival."""
    budget, now, pending, arrived = Budget([Window(n, 1.0)]), SECOND, [], []
    for wait, want, takes in steps:
        now += wait
        for at in sorted(at for at in pending if at <= now):
            pending.remove(at)
            arrived.append(now)     # heard of now: at the latest
            budget.renew(now)
        room = min(want, budget.limit - len(pending) - budget.used(now)[0])
        pending += [now + takes] * (budget.take(now, room) if room > 0 else 0)
    for begin in arrived:
        assert sum(begin <= at < begin + SECOND for at in arrived) <= max(1, n * 80 // 100)


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


# -- the profiles of the endpoints we speak ----------------------------------------------------------------------------

BUDGET_KEYS = {
    "conn": "max_open max_open_scope counts_http attempts reject ban_s first_sub_deadline_s settle_delay_s",
    "client_msg": "windows window_kind counts_control_frames counts_ops pace_ms credits over",
    "sub": "max_per_conn soft_per_conn max_per_ip max_dup_per_product_channel max_args_per_msg max_args_chars_per_conn max_msg_bytes "
           "weight_by_channel soft_by_channel exclusive in_url ack ack_means_data dup_sub",
    "lifetime": "max_s shutdown_notice notice_lead_s",
    "rest": "instruments weight budget"}
PROFILES = [(name, endpoint) for name in venues.names() for endpoint in venues.load(name, 1).profiles]


@pytest.mark.parametrize("name,endpoint", PROFILES)
def test_every_budget_of_every_endpoint_was_looked_up_and_says_when_and_where(name, endpoint):
    found = venues.load(name, 1).profiles[endpoint]
    missing = [f"{block}.{key}" for block, keys in BUDGET_KEYS.items() for key in keys.split() if key not in found[block]]
    assert not missing, "None says that no limit is published; an absent key, that nobody looked"
    assert found["sources"] and found["as_of"] and found["confidence"]
    for window in (*found["conn"]["attempts"], *found["client_msg"]["windows"]):
        assert window["scope"] in ("conn", "ip", "account")
    rows = described(found)
    assert {row["kind"] for row in rows} == {"connection", "address", "over time", "learned"}
    assert all(row["documented"] is None or row["used_to"] is not None or row["what"].startswith("life") for row in rows)


def test_every_budget_of_a_profile_can_be_overridden_and_is_shown_so():
    given = {"max_per_conn": 11, "soft_per_conn": 10, "max_open": 12, "max_per_ip": 13, "max_args_chars_per_conn": 14, "attempts": [{"n": 15, "per_s": 1.0}],
             "ban_s": 16, "operations": [{"n": 17, "per_s": 1.0}], "messages": [{"n": 18, "per_s": 1.0}], "credits": {"cost": 1, "pool": 19, "refill_per_s": 1},
             "max_args_per_msg": 20, "weight_by_channel": {"w*": 21}, "soft_by_channel": {"s*": 22}, "lifetime_s": 23, "messages_per_s": 24, "pace_ms": 25}
    assert given.keys() == config.LimitTable.model_fields.keys()
    rows = described(merge(venues.load("deribit", 1).profiles["v2"], given))
    shown = " ".join(f"{row['documented']} {row['used_to']}" for row in rows)
    assert not [number for number in range(10, 26) if str(number) not in shown]
    typed = Profile.read(merge(venues.load("deribit", 1).profiles["v2"], given))
    assert typed.operations == (Window(17, 1.0),) and typed.credits == (19, 1.0) and typed.messages == (Window(17, 1.0), Window(18, 1.0))


def test_windows_of_an_address_and_of_a_connection_are_overridden_each_for_itself():
    first = {**profile(), "client_msg": {"windows": [{"n": 5, "per_s": 1, "scope": "conn"}, {"n": 9, "per_s": 1, "scope": "ip"}]}}
    assert Profile.read(merge(first, {"messages": [{"n": 2, "per_s": 1.0}]})).messages == (Window(9, 1.0), Window(2, 1.0))
    assert Profile.read(merge(first, {"operations": [{"n": 2, "per_s": 1.0}]})).operations == (Window(2, 1.0),)


def test_what_others_hold_of_an_address_is_not_ours():
    typed = Profile.read({**profile(max_per_ip=100), "conn": {"max_open": 32, "counts_http": True}})
    assert (typed.connections_usable, typed.streams_usable) == (24, 80)
    beside = dataclasses.replace(typed, held_open=20, held_streams=79)
    assert (beside.connections_usable, beside.streams_usable) == (4, 1)
    assert dataclasses.replace(typed, held_open=30).connections_usable == 0
