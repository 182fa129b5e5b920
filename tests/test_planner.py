"""A plan never breaks a limit, in no state on the way either; it is level, stable, and moves only what pays."""
import collections
import dataclasses
import fnmatch
import functools
import itertools
import random
import re

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feedhandler.capacity import headroom, load, order, plan
from feedhandler.capacity.limits import STANDBY, Fill, Rules, addresses, item_of
from feedhandler.capacity.profile import Profile
from feedhandler.capacity.plan import EMPTY, Placement, PlanError, Settings, Wanted, lower_bound

CPU_NS = 10_000


def profile(conn=None, **sub):
    return {("v", "e"): Profile.read({"venue": "v", "endpoint": "e", "conn": conn or {}, "sub": sub, "client_msg": {}})}


def want(wire, instrument, line=0, endpoint="e"):
    return Wanted("v", endpoint, wire, instrument, f"S{instrument}", line)


def learned(rates, cpu_ns=CPU_NS):
    """Loads of {wire: messages a second}."""
    loads = load.Loads()
    for wire, rate in rates.items():
        loads.measure(("v", "e", wire), 0.0, 60.0, round(rate * 60), cpu_ns=cpu_ns)
    return loads


def where(placement):
    return {stream.key: connection.id for connection in placement.connections for stream in connection.streams}


def per_worker(placement, loads):
    """{worker: CPU in ns a second} of a placement."""
    found = collections.Counter()
    for connection in placement.connections:
        for stream in connection.streams:
            of = loads.of(stream)
            found[connection.worker] += int(of.messages_per_s * of.cpu_ns) + 1
    return found


# -- hard limits ---------------------------------------------------------------------------------------------------

def legal(connections, typed, books, chars):
    """Whether every limit of the profile holds for {id: (line, [wires])}, counted anew."""
    if typed.connections_usable is not None and len(connections) > typed.connections_usable:
        return False
    if typed.streams_usable is not None and sum(len(wires) for _, wires in connections.values()) > typed.streams_usable:
        return False
    for _, wires in connections.values():
        if sum(2 if wire.startswith("trade") else 1 for wire in wires) > typed.fill or sum(map(len, wires)) > chars:
            return False
        if sum(fnmatch.fnmatch(wire, "book*") for wire in wires) > books or len(set(wires)) != len(wires):
            return False
        if any(wire.startswith("book-") and f"book50-{wire[5:]}" in wires for wire in wires):
            return False
    return True


def replay(before, moves, typed, books, chars):
    """Every state the moves go through is legal; the last one, as {key: connection}."""
    on = where(before)
    both = collections.defaultdict(dict)       # connection → {key: wire}
    for key, id in on.items():
        both[id][key] = key[2]

    def state():
        return {id: (0, list(wires.values())) for id, wires in both.items() if wires}
    began_legal = legal(state(), typed, books, chars)
    for move in moves:
        for key, source, target in move.streams:
            assert source == on.get(key, 0), "a stream leaves the connection it is on"
            if target:
                both[target][key] = key[2]
        assert not began_legal or legal(state(), typed, books, chars), f"{move} breaks a limit before its break"
        for key, source, target in move.streams:
            if source:
                del both[source][key]
            on[key] = target
            if not target:
                del on[key]
    return on


rows = st.lists(st.tuples(st.integers(0, 12), st.sampled_from(["book", "book50", "trade", "quote"]), st.integers(0, 1)), unique=True, max_size=50)


@settings(max_examples=150, deadline=None)
@given(rows, rows, st.integers(1, 5), st.integers(1, 5), st.integers(3, 12), st.integers(1, 4), st.integers(20, 120), st.integers(3, 40), st.data())
def test_no_state_on_the_way_from_any_plan_to_any_other_breaks_a_limit(first, then, workers, later, fill, books, chars, open_, data):
    profiles = profile({"max_open": open_}, max_per_conn=fill, soft_by_channel={"book*": books}, weight_by_channel={"trade*": 2},
                       exclusive=[["book-*", "book50-*"]], max_args_chars_per_conn=chars)
    typed = profiles["v", "e"]
    before = EMPTY
    for rows, count in ((first, workers), (then, later)):
        wanted = [want(f"{channel}-{instrument}", instrument, line) for instrument, channel, line in rows]
        loads = learned({stream.wire: data.draw(st.integers(0, 2000)) for stream in wanted})
        rule = Settings(workers=count, streams_per_worker=100)
        try:
            found = plan.plan(wanted, profiles, loads, before, rule)
        except PlanError as error:
            assert all("connections, this address may hold" in said for said in error.problems)
            return
        placed = found.placement
        assert sorted(where(placed)) == sorted(stream.key for stream in wanted)
        assert legal({c.id: (c.line, [s.wire for s in c.streams]) for c in placed.connections}, typed, books, chars)
        assert plan.over(placed, profiles) == []
        for connection in placed.connections:
            assert {stream.line for stream in connection.streams} == {connection.line}, "lines A and B never share a connection"
            assert all(placed.workers[stream.instrument] == connection.worker < count for stream in connection.streams), "an instrument has one worker"
        assert replay(before, found.moves, typed, books, chars) == where(placed)
        assert all(re.search(r"\d", move.reason) for move in found.moves if move.kind == order.MOVE), "a move says why, with figures"
        assert all(move.reason for move in found.moves)
        assert plan.plan(list(wanted), profiles, loads, before, rule).placement == placed, "deterministic"
        again = plan.plan(wanted, profiles, loads, placed, rule)
        assert again.moves == [] and where(again.placement) == where(placed), "a planned placement stays"
        before = placed


def test_a_full_address_swaps_streams_with_a_hole_that_the_reason_names_and_with_one_free_connection_without():
    for open_, holes in ((3, 1), (4, 0)):      # 80 %: 2 and 3 connections
        profiles = profile({"max_open": open_}, max_per_conn=1)
        before = Placement({0: 0, 1: 1}, [plan.Connection(1, 0, "v", "e", 0, [want("a", 0)]), plan.Connection(2, 1, "v", "e", 0, [want("b", 1)])])
        swapped = [plan.Fill(1, 0, ("v", "e", 0), plan.Rules(profiles["v", "e"])), plan.Fill(2, 1, ("v", "e", 0), plan.Rules(profiles["v", "e"]))]
        items = {stream.key: plan.item_of(stream, swapped[0].rules, plan.NoLoad) for stream in (want("a", 0), want("b", 1))}
        swapped[0].add(items[want("b", 1).key])
        swapped[1].add(items[want("a", 0).key])
        moves = order.moves(before, swapped, items, {("v", "e"): swapped[0].rules}, addresses(profiles, Settings()), {})
        assert sum(move.kind == order.DROP for move in moves) == holes == sum(move.kind == order.ADD for move in moves)
        assert any("dropped until there is room" in move.reason or "temporary connection" in move.reason for move in moves)
        assert replay(before, moves, profiles["v", "e"], 9, 99) == {want("a", 0).key: 2, want("b", 1).key: 1}


def fewest(items, rules):
    """Fewest connections that hold items (limits.Item), by trying all ways."""
    fills, best = [], len(items)

    def go(at):
        nonlocal best
        if at == len(items) or len(fills) >= best:
            best = min(best, len(fills))
            return
        for fill in [*fills, Fill(0, 0, items[at].place, rules)]:
            if fill.takes(items[at]):
                fresh = not fill.items
                fills.extend([fill] * fresh)
                fill.add(items[at])
                go(at + 1)
                fill.remove(items[at])
                del fills[len(fills) - fresh:]
    go(0)
    return best


def possible(wanted, profiles, rule):
    """Whether any placement at all keeps every hard limit, by trying all instruments on all workers."""
    rules, places = Rules(profiles["v", "e"]), addresses(profiles, rule)
    groups = collections.defaultdict(list)       # (unit, place) → items
    for stream in wanted:
        item = item_of(stream, rules, plan.NoLoad)
        groups[item.unit, item.place].append(item)
    units = sorted({unit for unit, _ in groups})
    connections = functools.cache(lambda mine, place: fewest([item for unit in mine for item in groups.get((unit, place), ())], rules))
    for homes in itertools.product([worker for worker in range(rule.workers) if worker not in rule.drained], repeat=len(units)):
        home = dict(zip(units, homes))
        held = [tuple(unit for unit in units if home[unit] == worker) for worker in set(homes)]
        if any(home.get(~unit) == home[unit] for unit in units) or any(
                sum(len(items) for (unit, _), items in groups.items() if unit in mine) > rule.streams_per_worker for mine in held):
            continue
        used = collections.Counter()
        for mine, place in itertools.product(held, {place for _, place in groups}):
            used[places[place]] += connections(mine, place)
        if all(count <= address.connections for address, count in used.items()):
            return True
    return False


def tight(seed):
    """(wanted, profiles, loads, settings) of a few streams under limits that just hold them, or do not."""
    rnd = random.Random(seed)
    sub = {"max_per_conn": rnd.randint(2, 5), "soft_by_channel": {"book*": rnd.randint(1, 3)}, "weight_by_channel": {"trade*": 2},
           "exclusive": [["book-*", "book50-*"]], "max_args_chars_per_conn": rnd.choice([14, 20, 30, 200])}
    sub = {key: value for key, value in sub.items() if rnd.random() < 0.6}
    document = {"venue": "v", "endpoint": "e", "conn": {"max_open": rnd.choice([2, 3, 4, 5, 6, 8])}, "sub": sub, "lifetime": {"max_s": rnd.choice([None, 86400])}}
    rows = sorted({(rnd.randint(0, 3), rnd.choice(["book", "book50", "trade", "quote"])) for _ in range(rnd.randint(2, 6))})
    lines, workers = rnd.choice([(0,), (0, 1), (0, STANDBY)]), rnd.randint(1, 3)
    wanted = [want(f"{channel}-{i}", i, line) for i, channel in rows for line in lines]
    rule = Settings(workers=workers, streams_per_worker=rnd.choice([2, 3, 4, 6, 100]), sources_b=rnd.choice([(), ("v",)]), messages_per_s=rnd.choice([500, 20_000]),
                    drained=(0,) if workers > 1 and rnd.random() < 0.15 else ())
    return wanted, {("v", "e"): Profile.read(document)}, learned({s.wire: int(rnd.lognormvariate(4, 2)) for s in wanted}, rnd.choice([1000, 1_000_000])), rule


def test_a_plan_is_refused_only_where_no_placement_at_all_keeps_the_limits():
    """Longest first alone refuses a thirtieth of the cases that have one. Each plan stays when planned again, and says why it moves what it moves."""
    counts = collections.Counter()
    for seed in range(600):
        wanted, profiles, loads, rule = tight(seed)
        try:
            found = plan.plan(wanted, profiles, loads, settings=rule)
        except PlanError:
            assert not possible(wanted, profiles, rule), f"seed {seed}"
            counts["refused"] += 1
            continue
        counts["placed"] += 1
        for later in (rule, dataclasses.replace(rule, workers=3, drained=(), limits={1: 50})):
            after = plan.plan(wanted, profiles, loads, found.placement, later)
            assert later is not rule or after.moves == [], f"seed {seed}"
            assert plan.over(after.placement, profiles, rule) == []
            assert all(re.search(r"\d", move.reason) and "\n" not in move.reason for move in after.moves), f"seed {seed}: {after.moves}"
    assert min(counts["refused"], counts["placed"]) > 150


@pytest.mark.parametrize("streams,sub,conn,words", [
    ([want("long" * 9, 0)], {"max_args_chars_per_conn": 20}, {}, "alone is above"),
    ([want("a", 0), want("a", 0)], {}, {}, "wanted twice"),
    ([want("a", 0, endpoint="other")], {}, {}, "no endpoint 'other'"),
    ([want(f"a{i}", i) for i in range(9)], {"max_per_conn": 1}, {"max_open": 10}, "needs 9 connections, this address may hold 8"),
    ([want(f"a{i}", i) for i in range(9)], {"max_per_ip": 10}, {}, "needs 9 streams, this address may hold 8"),
    ([want("a", 0), want("a", 0, STANDBY)], {}, {}, "no second worker for its standby"),
    ([want(f"a{i}", i) for i in range(2001)], {}, {}, "worker 0 would hold 2001 streams"),
])
def test_what_does_not_fit_is_named(streams, sub, conn, words):
    with pytest.raises(PlanError, match=words):
        plan.plan(streams, profile(conn, **sub))


@pytest.mark.parametrize("streams,sub,conn", [
    ([want("long" * 5, 0)], {"max_args_chars_per_conn": 20}, {}),
    ([want(f"a{i}", i) for i in range(8)], {"max_per_conn": 1}, {"max_open": 10}),
    ([want(f"a{i}", i) for i in range(8)], {"max_per_ip": 10}, {}),
    ([want(f"a{i}", i) for i in range(2000)], {}, {}),
])
def test_what_just_fits_is_placed(streams, sub, conn):
    assert len(where(plan.plan(streams, profile(conn, **sub)).placement)) == len(streams)


def test_a_stream_is_not_planned_where_its_endpoint_does_not_deliver_it():
    typed = Profile.read({"venue": "v", "endpoint": "e", "routing": [{"channel_glob": "*@depth", "delivered": False}, {"channel_glob": "*", "delivered": True}]})
    with pytest.raises(PlanError, match="does not deliver x@depth"):
        plan.plan([want("x@depth", 0), want("x@trade", 0)], {("v", "e"): typed})


def test_few_connections_an_address_keep_a_venue_on_few_workers():
    placed = plan.plan([want(f"a-{i}", i) for i in range(40)], profile({"max_open": 4, "counts_http": True}), settings=Settings(workers=8)).placement
    assert len(placed.connections) == 2 and set(placed.workers.values()) == {0, 1}   # 80 % of 4 is 3, one is for HTTP


def test_a_sparse_placement_is_packed_anew_when_only_that_makes_room():
    profiles = profile({"max_open": 5}, max_per_conn=3)       # 4 connections
    sparse = Placement({i: 0 for i in range(4)}, [plan.Connection(i + 1, 0, "v", "e", 0, [want(f"a{i}", i)]) for i in range(4)])
    wanted = [want(f"a{i}", i) for i in range(4)] + [want(f"b{i}", 10 + i, 1) for i in range(6)]
    found = plan.plan(wanted, profiles, placement=sparse)
    assert len(found.placement.connections) == 4
    assert replay(sparse, found.moves, profiles["v", "e"], 99, 999) == where(found.placement)


def test_a_standby_lives_on_another_worker_than_its_owner():
    wanted = [want(f"{channel}{i}", i, line) for i in range(20) for channel in "ab" for line in (0, 1, STANDBY)]
    placed = plan.plan(wanted, profile(), settings=Settings(workers=3)).placement
    assert placed.standbys.keys() == placed.workers.keys()
    assert all(placed.standbys[i] != placed.workers[i] for i in placed.workers)
    for connection in placed.connections:
        assert all((placed.standbys if stream.line == STANDBY else placed.workers)[stream.instrument] == connection.worker
                   and (stream.line == 1) == (connection.line == 1) for stream in connection.streams)
    after = plan.plan(wanted, profile(), placement=placed, settings=Settings(workers=3, drained=(1,))).placement
    assert 1 not in {*after.workers.values(), *after.standbys.values()}
    assert all(after.standbys[i] != after.workers[i] for i in after.workers)


def test_a_standby_that_took_over_stays_on_its_connection():
    wanted = [want(f"{channel}{i}", i, line) for i in range(20) for channel in "ab" for line in (0, STANDBY)]
    placed = plan.plan(wanted, profile(), settings=Settings(workers=2)).placement
    taken = {i for i, worker in placed.workers.items() if worker == 0}
    connections = [plan.Connection(c.id, c.worker, c.venue, c.endpoint, c.line, [
        dataclasses.replace(stream, line=0) if stream.line == STANDBY else stream for stream in c.streams
        if stream.instrument not in taken or stream.line == STANDBY]) for c in placed.connections]
    after = Placement({i: 1 if i in taken else worker for i, worker in placed.workers.items()}, [c for c in connections if c.streams],
                      {i: worker for i, worker in placed.standbys.items() if i not in taken})
    found = plan.plan(wanted, profile(), placement=after, settings=Settings(workers=2, improve=False))
    assert {move.kind for move in found.moves} == {"add"} and found.placement.workers == after.workers


# -- level ---------------------------------------------------------------------------------------------------------

@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=9), st.integers(1, 3))
def test_the_peak_is_within_2_percent_of_the_best_of_all_placements(rates, workers):
    """Longest first alone may be a third over, with moves and swaps a ninth."""
    wanted = [want(f"a{i}", i) for i in range(len(rates))]
    loads = learned({f"a{i}": rate for i, rate in enumerate(rates)})
    weights = [int(loads.of(stream).messages_per_s * CPU_NS) + 1 for stream in wanted]
    best = min(max(sum(weight for weight, home in zip(weights, homes) if home == worker) for worker in range(workers))
               for homes in itertools.product(range(workers), repeat=len(weights)))
    found = max(per_worker(plan.plan(wanted, profile(), loads, settings=Settings(workers=workers)).placement, loads).values())
    assert lower_bound(weights, workers) <= best <= found
    assert found <= best * 1.02 + 1


@pytest.mark.parametrize("rates,workers,peak", [([20, 25, 30, 16, 14, 14, 20], 3, 48), ([18, 19, 22, 18, 19, 25, 27], 2, 74), ([20, 10, 10, 18, 25, 28, 15], 3, 43)])
def test_where_no_single_move_helps_a_swap_does(rates, workers, peak):
    """Longest first ends a tenth higher on these."""
    loads = learned({f"a{i}": rate for i, rate in enumerate(rates)})
    found = plan.plan([want(f"a{i}", i) for i in range(len(rates))], profile(), loads, settings=Settings(workers=workers)).placement
    assert round(max(per_worker(found, loads).values()) / CPU_NS) == peak


def solved(weights, sizes, workers, cap):
    """Lowest peak of instruments of these weights and numbers of streams, at most `cap` streams a worker, by HiGHS."""
    optimize = pytest.importorskip("scipy.optimize")
    count, size = len(weights), len(weights) * workers
    each = optimize.LinearConstraint(numpy.hstack([numpy.kron(numpy.eye(count), numpy.ones(workers)), numpy.zeros((count, 1))]), 1, 1)
    caps = optimize.LinearConstraint(numpy.hstack([numpy.kron(sizes, numpy.eye(workers)), numpy.zeros((workers, 1))]), 0, cap)
    peaks = optimize.LinearConstraint(numpy.hstack([numpy.kron(weights, numpy.eye(workers)), -numpy.ones((workers, 1))]), -numpy.inf, 0)
    answer = optimize.milp([0.0] * size + [1.0], constraints=[each, caps, peaks], integrality=[1] * size + [0],
                           bounds=optimize.Bounds(0, [1.0] * size + [numpy.inf]), options={"time_limit": 5.0, "mip_rel_gap": 0.001})
    return answer.x[-1]


@pytest.mark.parametrize("seed", [None, 21, 41, 100, *range(4)])
def test_a_solver_finds_no_better_peak_under_count_caps(seed):
    """None: Zipf weights, the case the method was chosen by. Of the other seeds the first three were far off without a search."""
    rnd = random.Random(seed)
    count, workers = (60, 4) if seed is None else (rnd.randint(6, 18), rnd.randint(2, 4))
    sizes = [1 if seed is None else rnd.randint(1, 3) for _ in range(count)]
    cap = 17 if seed is None else -(-sum(sizes) // workers) + rnd.randint(0, 1)
    rates = {f"{channel}{i}": 4000 / (i + 3) if seed is None else int(rnd.lognormvariate(3, 1)) + 1 for i in range(count) for channel in "abc"[:sizes[i]]}
    loads, wanted = learned(rates), [want(wire, int(wire[1:])) for wire in rates]
    found = plan.plan(wanted, profile(), loads, settings=Settings(workers=workers, streams_per_worker=cap)).placement
    weights = numpy.zeros(count)
    for stream in wanted:
        weights[stream.instrument] += int(loads.of(stream).messages_per_s * CPU_NS) + 1
    assert max(sum(sizes[i] for i in found.workers if found.workers[i] == worker) for worker in range(workers)) <= cap
    assert max(per_worker(found, loads).values()) <= 1.02 * solved(weights, numpy.array(sizes, float), workers, cap)


@pytest.mark.parametrize("count,workers", [(300, 4), (2000, 16), (3000, 64)])
def test_the_peak_is_within_2_percent_of_the_lower_bound(count, workers):
    rates = {f"a{i}": 3000 / (i + 10) ** 0.8 for i in range(count)}
    loads, wanted = learned(rates), [want(f"a{i}", i) for i in range(count)]
    found = per_worker(plan.plan(wanted, profile(max_per_conn=40), loads, settings=Settings(workers=workers)).placement, loads)
    weights = [int(loads.of(stream).messages_per_s * CPU_NS) + 1 for stream in wanted]
    assert len(found) == workers and max(found.values()) <= 1.02 * lower_bound(weights, workers)


def test_streams_of_one_worker_are_level_over_its_connections():
    rates = {f"a{i}": 5 + i % 40 for i in range(200)}
    found = plan.plan([want(wire, i) for i, wire in enumerate(rates)], profile(max_per_conn=50), learned(rates)).placement
    carried = [sum(rates[stream.wire] for stream in connection.streams) for connection in found.connections]
    assert len(carried) == 4 and max(carried) <= 1.02 * sum(carried) / 4


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(0, 50), min_size=1, max_size=8), st.integers(1, 4))
def test_the_lower_bound_is_below_every_placement(weights, bins):
    best = min(max(sum(weight for weight, home in zip(weights, homes) if home == bin) for bin in range(bins))
               for homes in itertools.product(range(bins), repeat=len(weights)))
    assert lower_bound(weights, bins) <= best


# -- learned limits --------------------------------------------------------------------------------------------------

def test_a_stream_ten_times_heavier_than_its_neighbours_ends_alone_after_one_plan():
    calm = {f"a{i}": 50 for i in range(30)}
    wanted, profiles = [want(wire, i) for i, wire in enumerate(calm)], profile()
    before = plan.plan(wanted, profiles, learned(calm)).placement
    assert len(before.connections) == 1
    for rate, alone in ((500, True), (499, False)):
        loads = learned({**calm, "a7": rate})
        found = plan.plan(wanted, profiles, loads, before)
        assert [len(connection.streams) for connection in found.placement.connections] == ([29, 1] if alone else [30])
        assert len(found.moves) == alone, "only the heavy one moves"
        if alone:
            assert "it brings 500 messages/s, its 29 neighbours on connection 1 50 each" == found.moves[0].reason
            for later in (500, 400, 260):
                more = [*wanted, want("new", 99)]
                after = plan.plan(more, profiles, learned({**calm, "a7": later, "new": 20}), found.placement)
                assert [move.kind for move in after.moves] == [order.ADD], "it is not put back for a little less"
                assert after.moves[0].streams == ((want("new", 99).key, 0, 1),), "nor is a new stream put beside it"


def test_a_heavy_stream_stays_when_the_address_has_no_connection_for_it():
    rates = {**{f"a{i}": 50 for i in range(30)}, "a7": 5000}
    found = plan.plan([want(wire, i) for i, wire in enumerate(rates)], profile({"max_open": 1}), learned(rates))
    assert len(found.placement.connections) == 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 500), min_size=1, max_size=60), st.integers(20, 90))
def test_connections_stay_below_the_target_of_their_learned_limit(rates, target):
    rule = Settings(messages_per_s=1000, target_percent=target)
    by_wire = {f"a{i}": rate for i, rate in enumerate(rates)}
    found = plan.plan([want(wire, i) for i, wire in enumerate(by_wire)], profile(), learned(by_wire, cpu_ns=1), settings=rule)
    for connection in found.placement.connections:
        carried = sum(by_wire[stream.wire] for stream in connection.streams)
        assert carried <= 10 * target or len(connection.streams) == 1
    assert sum("one stream alone" in said for said in found.problems) == sum(rate > 10 * target for rate in rates)


def test_a_connection_that_grew_over_its_target_is_split_by_as_few_moves_as_will_do():
    rates = {f"a{i}": 100 for i in range(50)}                     # 5,000 of 12,000
    wanted = [want(wire, i) for i, wire in enumerate(rates)]
    before = plan.plan(wanted, profile(), learned(rates)).placement
    grown = learned({wire: rate * 2.5 for wire, rate in rates.items()}, cpu_ns=1)   # 12,500
    found = plan.plan(wanted, profile(), grown, before)
    assert len(found.moves) == 2 and len(found.placement.connections) == 2
    assert all(move.reason == "connection 1 carries 12,500 messages/s, the target is 12,000" for move in found.moves)
    assert plan.plan(wanted, profile(), grown, before, Settings(improve=False)).moves == [], "without improve nothing moves that need not"


def test_workers_above_the_target_are_named_when_nothing_helps():
    rates = {"a": 1000, "b": 1000}
    found = plan.plan([want("a", 0), want("b", 1)], profile(), learned(rates, cpu_ns=700_000), settings=Settings(workers=2))
    assert set(found.placement.workers.values()) == {0, 1}
    assert [said.split(",")[0] for said in found.problems] == [f"worker {n} would use 70.0 % of its CPU" for n in (0, 1)]


def test_a_connection_found_throttled_is_split_until_it_is_below_the_target_of_what_it_carried():
    rates = {f"a{i}": 10 for i in range(30)}
    wanted, loads = [want(wire, i) for i, wire in enumerate(rates)], learned(rates, cpu_ns=1)
    before = plan.plan(wanted, profile(max_per_conn=20), loads).placement
    assert [len(connection.streams) for connection in before.connections] == [15, 15]
    found = plan.plan(wanted, profile(max_per_conn=20), loads, before, Settings(limits={2: 100}))
    carried = {connection.id: 10 * len(connection.streams) for connection in found.placement.connections}
    assert carried == {1: 200, 2: 60, 3: 40}, "the other connection takes what it may, a new one the rest"
    assert {move.reason for move in found.moves} == {
        "connection 2 carries 150 messages/s, the target is 60, 60 % of the 100 it was found limited to"}
    rows = {(row.where, row.what): (row.used, row.limit) for row in found.headroom}
    assert rows["connection 2", "messages/s"] == (60, 60) and rows["connection 1", "messages/s"] == (200, 12_000)
    assert plan.plan(wanted, profile(max_per_conn=20), loads, found.placement, Settings(limits={2: 100})).moves == []


# -- stable --------------------------------------------------------------------------------------------------------

def universe(count):
    rates = {f"{channel}{i}": factor * (20 + i * 37 % 100) for i in range(count) for channel, factor in (("q", 4), ("t", 1), ("b", 2))}
    return [want(wire, int(wire[1:])) for wire in rates], rates


@settings(max_examples=25, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 6))
def test_a_small_change_of_load_moves_nothing(random, workers):
    wanted, rates = universe(60)
    rule = Settings(workers=workers)
    before = plan.plan(wanted, profile(max_per_conn=30), learned(rates), settings=rule).placement
    jittered = learned({wire: rate * random.uniform(0.96, 1.04) for wire, rate in rates.items()})
    assert plan.plan(wanted, profile(max_per_conn=30), jittered, before, rule).moves == []


@pytest.mark.parametrize("imbalance,moves", [(1.09, 0), (1.12, 1)])
def test_workers_that_differ_by_less_than_the_hysteresis_are_left_alone(imbalance, moves):
    rates = {**{f"a{i}": 100 for i in range(40)}, **{f"b{i}": 100 for i in range(40)}}
    wanted = [want(wire, i) for i, wire in enumerate(rates)]
    before = plan.plan(wanted, profile(), learned(rates, 50_000), settings=Settings(workers=2)).placement
    assert sorted(collections.Counter(before.workers.values()).values()) == [40, 40]
    heavier = {wire: 100 * (imbalance if before.workers[i] == 0 else 2 - imbalance) for i, wire in enumerate(rates)}
    found = plan.plan(wanted, profile(), learned(heavier, 50_000), before, Settings(workers=2, target_percent=100))
    assert bool(found.moves) == bool(moves)
    assert all(move.worker_from == 0 and move.worker_to == 1 for move in found.moves if heavier[move.streams[0][0][2]] > 100)


@pytest.mark.parametrize("seed", [389, 1213, 1559, 1582, 2770, 5778, 6488, *range(60)])
def test_after_any_change_of_everything_a_planned_placement_stays(seed):
    """Streams, loads, workers and targets change three times. The seeds named first once moved something the second time:
    connections that one group had claimed in vain, or fewer workers tried only after more."""
    rnd = random.Random(seed)
    fill, books, chars, open_ = rnd.randint(3, 12), rnd.randint(1, 4), rnd.randint(20, 120), rnd.randint(3, 60)
    profiles = profile({"max_open": open_}, max_per_conn=fill, soft_by_channel={"book*": books}, weight_by_channel={"trade*": 2},
                       exclusive=[["book-*", "book50-*"]], max_args_chars_per_conn=chars)
    before = EMPTY
    for _ in range(3):
        rows = {(rnd.randint(0, 15), rnd.choice(["book", "book50", "trade", "quote"]), rnd.randint(0, 1)) for _ in range(rnd.randint(0, 70))}
        wanted = [want(f"{channel}-{i}", i, line) for i, channel, line in sorted(rows)]
        loads = learned({stream.wire: int(rnd.lognormvariate(4, 2)) for stream in wanted}, rnd.choice([1000, 100_000]))
        workers = rnd.randint(1, 5)
        rule = Settings(workers=workers, streams_per_worker=100, drained=(0,) if workers > 1 and rnd.random() < 0.2 else (),
                        messages_per_s=rnd.choice([500, 20_000]))
        try:
            found = plan.plan(wanted, profiles, loads, before, rule)
        except PlanError:
            return
        assert replay(before, found.moves, profiles["v", "e"], books, chars) == where(found.placement)
        assert plan.plan(wanted, profiles, loads, found.placement, rule).moves == []
        before = found.placement


def test_a_new_worker_is_filled_and_a_drained_one_emptied_moving_no_more_than_needed():
    wanted, rates = universe(120)
    loads, profiles = learned(rates, 20_000), profile(max_per_conn=30)
    three = plan.plan(wanted, profiles, loads, settings=Settings(workers=3)).placement
    grown = plan.plan(wanted, profiles, loads, three, Settings(workers=4))
    load_of = per_worker(grown.placement, loads)
    assert max(load_of.values()) <= 1.1 * sum(load_of.values()) / 4
    moved = {i for i in three.workers if grown.placement.workers[i] != three.workers[i]}
    assert {grown.placement.workers[i] for i in moved} == {3}, "only toward the new worker"
    assert all(move.kind == order.MOVE and len(move.streams) == 3 and "of a CPU" in move.reason for move in grown.moves), "an instrument moves as a whole"
    drained = plan.plan(wanted, profiles, loads, grown.placement, Settings(workers=4, drained=(1,)))
    assert 1 not in drained.placement.workers.values()
    stayed = [i for i, worker in grown.placement.workers.items() if worker != 1]
    assert sum(drained.placement.workers[i] != grown.placement.workers[i] for i in stayed) <= len(stayed) // 10
    assert {move.reason for move in drained.moves if move.worker_from == 1} == {"worker 1 is drained"}
    with pytest.raises(PlanError, match="every worker is drained"):
        plan.plan(wanted, profiles, loads, settings=Settings(workers=1, drained=(0,)))


def test_a_worker_that_is_no_more_moves_only_what_was_on_it():
    wanted, rates = universe(90)
    wanted += [dataclasses.replace(stream, line=line) for stream in wanted for line in (1, STANDBY)]
    loads, profiles = learned(rates, 10_000), profile(max_per_conn=30)
    before = plan.plan(wanted, profiles, loads, settings=Settings(workers=4)).placement
    found = plan.plan(wanted, profiles, loads, before, Settings(workers=3))
    moved = {key for move in found.moves for key, _, _ in move.streams}
    was = {stream.key: connection.worker for connection in before.connections for stream in connection.streams}
    assert moved == {key for key, worker in was.items() if worker == 3}
    assert {move.reason for move in found.moves} == {"worker 3 is no more"}
    assert all(found.placement.standbys[i] != found.placement.workers[i] for i in found.placement.workers)
    lines = {connection.id: connection.line for connection in found.placement.connections}
    on = where(found.placement)
    assert all((lines[id] == 1) == (key[3] == 1) for key, id in on.items()), "lines A and B share no connection"


def test_draining_a_worker_of_a_full_address_moves_only_what_was_on_it():
    """Dealt one by one to the others, its streams would ask for a connection of each."""
    wanted = [want(f"a{i}", i) for i in range(72)]
    profiles, loads = profile({"max_open": 10}, max_per_conn=10), learned({f"a{i}": 10 for i in range(72)})      # 80 %: 8 connections
    before = plan.plan(wanted, profiles, loads, settings=Settings(workers=8)).placement
    assert [len(connection.streams) for connection in before.connections] == [9] * 8
    found = plan.plan(wanted, profiles, loads, before, Settings(workers=8, drained=(3,)))
    moved = {key for move in found.moves for key, _, _ in move.streams}
    assert moved == {want(f"a{i}", i).key for i, worker in before.workers.items() if worker == 3}
    assert replay(before, found.moves, profiles["v", "e"], 99, 999) == where(found.placement) and len(found.placement.connections) == 8


def test_streams_that_go_leave_the_others_where_they_are():
    wanted, rates = universe(40)
    before = plan.plan(wanted, profile(max_per_conn=20), learned(rates), settings=Settings(workers=2)).placement
    found = plan.plan(wanted[::2], profile(max_per_conn=20), learned(rates), before, Settings(workers=2, improve=False))
    assert {move.kind for move in found.moves} == {order.DROP}
    assert {key: where(before)[key] for key in where(found.placement)} == where(found.placement)


# -- headroom ------------------------------------------------------------------------------------------------------

def test_headroom_says_what_is_used_of_every_budget():
    rates = {"a": 100, "bb": 200}
    found = plan.plan([want("a", 0), want("bb", 1)], profile({"max_open": 10}, max_per_conn=5, max_args_chars_per_conn=50, soft_by_channel={"b*": 3}), learned(rates))
    rows = {(row.where, row.what): (row.used, row.limit) for row in found.headroom}
    assert rows["connection 1", "streams"] == (2, 5) and rows["connection 1", "characters"] == (3, 50) and rows["connection 1", "streams b*"] == (1, 3)
    assert rows["connection 1", "messages/s"] == (300, 12_000) and rows["address v/e", "connections"] == (1, 8)
    assert rows["worker 0", "cpu"] == (pytest.approx(0.003, abs=1e-6), 0.6) and rows["worker 0", "streams"] == (2, 2000)
    assert headroom.next_reached(found.headroom) is None, "nothing grows"


def test_what_others_hold_of_an_address_is_not_planned_and_is_shown():
    wanted = [want(f"a{i}", i) for i in range(6)]
    profiles = profile({"max_open": 10}, max_per_conn=1, max_per_ip=20)          # 80 %: 8 connections, 16 streams
    def beside(connections, streams):
        return {key: dataclasses.replace(typed, held_open=connections, held_streams=streams) for key, typed in profiles.items()}
    found = plan.plan(wanted, beside(2, 10))
    rows = {(row.where, row.what): (row.used, row.limit) for row in found.headroom}
    assert rows["address v/e", "connections"] == (8, 8) and rows["address v/e", "streams"] == (16, 16)
    for held, words in (((3, 0), "needs 6 connections, this address may hold 5 .*without the 3 that others"), ((0, 11), "needs 6 streams, .*hold 5")):
        with pytest.raises(PlanError, match=words):
            plan.plan(wanted, beside(*held))
    assert len(plan.over(found.placement, beside(3, 0))) == 1
    moves = plan.plan(wanted, beside(2, 0), placement=found.placement, settings=Settings(workers=2, drained=(0,))).moves
    assert any("dropped until there is room" in move.reason for move in moves), "nor do moves take what others hold"


# -- addresses -----------------------------------------------------------------------------------------------------

def aging(open_, **sub):
    """A profile whose connections end after a day."""
    return {("v", "e"): Profile.read({"venue": "v", "endpoint": "e", "conn": {"max_open": open_}, "sub": sub, "lifetime": {"max_s": 86400}})}


def test_a_connection_is_left_free_for_rollovers_where_no_limit_asks_for_it():
    wanted = [want(f"a{i}", i) for i in range(12)]
    loads = learned({f"a{i}": 1000 * (i + 1) for i in range(12)}, cpu_ns=1)      # seven connections would be comfortable
    found = plan.plan(wanted, aging(5), loads)                                   # 80 %: 4
    assert len(found.placement.connections) == 3 and len(plan.plan(wanted, profile({"max_open": 5}), loads).placement.connections) == 4
    rows = {(row.where, row.what): (row.used, row.limit) for row in found.headroom}
    assert rows["address v/e", "connections"] == (3, 4) and rows["address v/e", "connections for rollovers"] == (0, 1)
    assert not any("rollover" in said for said in found.problems)
    needed = plan.plan(wanted, aging(5, max_per_conn=3), loads)
    assert len(needed.placement.connections) == 4
    assert [said for said in needed.problems if "rollover" in said] == [
        "v/e needs 4 of the 4 connections this address may hold: none is left for a rollover to open first, so rollovers there break before they make"]
    rows = {(row.where, row.what): (row.used, row.limit) for row in needed.headroom}
    assert rows["address v/e", "connections for rollovers"] == (1, 1)
    assert plan.plan(wanted, aging(5, max_per_conn=3), loads, needed.placement).moves == []


def test_a_single_connection_is_used_although_its_rollover_has_none():
    found = plan.plan([want("a", 0)], aging(1))
    assert len(found.placement.connections) == 1 and found.problems == []
    assert ("address v/e", "connections for rollovers") not in {(row.where, row.what) for row in found.headroom}


def test_a_line_from_an_address_of_its_own_has_budgets_of_its_own():
    wanted = [want(f"a{i}", i, line) for i in range(8) for line in (0, 1)]
    profiles = profile({"max_open": 10}, max_per_conn=1, max_per_ip=10)          # 80 %: 8 connections, 8 streams an address
    with pytest.raises(PlanError, match="needs 16 connections"):
        plan.plan(wanted, profiles)
    rule = Settings(sources_b=("v",))
    found = plan.plan(wanted, profiles, settings=rule)
    rows = {(row.where, row.what): (row.used, row.limit) for row in found.headroom}
    assert rows["address v/e", "connections"] == (8, 8) == rows["address v/e line B", "connections"]
    assert rows["address v/e", "streams"] == (8, 8) == rows["address v/e line B", "streams"]
    assert plan.over(found.placement, profiles, rule) == [] and len(plan.over(found.placement, profiles)) == 2
    with pytest.raises(PlanError, match="v/e line B needs 9 connections"):
        plan.plan([*wanted, want("b", 9, 1)], profiles, settings=rule)


def test_the_forecast_names_the_next_budget_and_when_it_is_reached():
    loads, rate = load.Loads(), 100.0
    for step in range(2000):                      # half a message a second more each 10 s
        loads.measure(("v", "e", "a"), 10.0 * step, 10.0, rate * 10, cpu_ns=CPU_NS)
        rate += 0.5
    found = headroom.next_reached(plan.plan([want("a", 0)], profile(), loads).headroom)
    assert (found.where, found.what) == ("connection 1", "messages/s")
    assert found.reached_s == pytest.approx((12_000 - rate) / 0.05, rel=0.05)
