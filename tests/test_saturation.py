"""What is proposed where connections are throttled or workers fall behind: the plan split by it, and what is shed at last."""
import json

import pytest

from feedhandler.capacity.load import Loads
from feedhandler.capacity.plan import EMPTY, Settings, Wanted, plan
from feedhandler.capacity.profile import Profile
from feedhandler.supervisor import saturation
from feedhandler.supervisor.saturation import Saturation, to_shed

TARGET = 60


def profiles(most=None):
    return {("v", "e"): Profile.read({"venue": "v", "endpoint": "e", "sub": {"max_per_conn": 100}, "conn": {"max_open": most} if most else {}})}


def wanted(count, instrument=None):
    return [Wanted("v", "e", f"w{number}", number if instrument is None else instrument, f"S{number}", 0, "trade", "spot") for number in range(count)]


def learned(streams, rates):
    loads = Loads()
    for stream, rate in zip(streams, rates):
        loads.measure((stream.venue, stream.endpoint, stream.wire), 0.0, 100.0, 100 * rate)
    return loads


def placed(streams, loads, most=None, **settings):
    return plan(streams, profiles(most), loads, EMPTY, Settings(target_percent=TARGET, **settings)).placement


def improved(placement, loads, found, most=None, **settings):
    streams = [stream for connection in placement.connections for stream in connection.streams]
    return plan(streams, profiles(most), loads, placement, Settings(target_percent=TARGET, limits=found.limits(), **settings))


def test_a_throttled_connection_is_split_until_each_part_is_below_the_target_of_what_it_carried():
    streams = wanted(12)
    loads = learned(streams, [50] * 12)
    placement = placed(streams, loads)
    (connection,) = placement.connections
    found = Saturation()
    assert found.connection(10.0, connection.id, "THROTTLED", "the venue holds back", 400.0) and not found.is_due(10.5)
    assert not found.connection(11.0, connection.id, "THROTTLED", "the venue holds back", 390.0), "it is told once"
    assert found.is_due(12.0) and found.limits() == {connection.id: 400.0} and found.throttled() == {connection.id}
    better = improved(placement, loads, found)
    rates = {one.id: sum(loads.of(stream).messages_per_s for stream in one.streams) for one in better.placement.connections}
    assert len(rates) > 1 and rates[connection.id] <= 0.6 * 400
    (remedy,) = found.remedies(12.0, better, placement, loads, {}, TARGET)
    assert remedy.kind == "split" and remedy.sentence.startswith(f"split connection {connection.id} of v/e: 8 of its 12 streams go elsewhere")
    assert improved(better.placement, loads, found).moves == [], "once is enough"
    assert not found.connection(20.0, connection.id, "OK", "", 200.0) and found.throttled() == set() and found.limits()
    assert found.remedies(20.0, better, placement, loads, {}, TARGET) == []
    found.keep(20.0 + saturation.LIMIT_S, {connection.id})
    assert found.limits() == {}, "after some hours it may be tried again"


def test_a_stream_fourteen_times_its_neighbours_is_the_one_that_leaves():
    streams = wanted(6)
    loads = learned(streams, [20] * 6)
    placement = placed(streams, loads)
    loads = learned(streams, [280] + [20] * 5)
    found = Saturation()
    found.connection(0.0, 1, "THROTTLED", "the venue holds back", 300.0)
    after = improved(placement, loads, found).placement
    assert [stream.wire for one in after.connections for stream in one.streams if len(one.streams) == 1] == ["w0"]


def test_only_where_no_move_helps_streams_are_shed_by_priority_and_only_after_a_while():
    streams = wanted(6)
    loads = learned(streams, [50, 50, 50, 50, 100, 10])
    placement = placed(streams, loads, most=1)
    found = Saturation()
    found.connection(0.0, 1, "THROTTLED", "the venue holds back", 400.0)
    better = improved(placement, loads, found, most=1)
    assert better.moves == []
    priorities = {stream.key: priority for stream, priority in zip(streams, (9, 5, 3, 3, 5, 1))}
    early, = found.remedies(5.0, better, placement, loads, priorities, TARGET)
    assert early.kind == "shed" and early.keys == () and "in 25 s if it lasts" in early.sentence
    remedy, = found.remedies(31.0, better, placement, loads, priorities, TARGET)
    assert remedy.keys == (streams[5].key, streams[2].key, streams[3].key), "10 + 50 + 50 of 310 bring it below 240"
    assert "shed 3 streams of connection 1 of v/e, of priority 3 and lower: the address may open no more" in remedy.sentence
    nothing, = found.remedies(31.0, better, placement, loads, dict.fromkeys(priorities, 9), TARGET)
    assert nothing.kind == "none" and nothing.keys == () and "no stream of it has a priority below 9" in nothing.sentence


def test_the_last_stream_of_a_connection_is_never_shed():
    streams = wanted(2)
    assert to_shed(streams, 1e9, learned(streams, [10, 20]), {stream.key: 0 for stream in streams}) == (streams[1].key,)


def test_a_worker_that_falls_behind_is_relieved_of_instruments_where_another_has_room():
    streams = wanted(8)
    loads = learned(streams, [300] * 4 + [5] * 4)
    for load in loads.entries.values():
        load.cpu_ns = 500_000.0
    placement = placed(streams, loads)
    found = Saturation()
    assert found.worker(0.0, 0, "every turn of its loop is late") and not found.worker(1.0, 0, "every turn of its loop is late")
    remedy, = found.remedies(3.0, improved(placement, loads, found, workers=2), placement, loads, {}, TARGET)
    assert remedy.kind == "move" and remedy.sentence.endswith("off worker 0: it falls behind, every turn of its loop is late")
    alone, = found.remedies(3.0, improved(placement, loads, found), placement, loads, {}, TARGET)
    assert alone.kind == "none" and "raise instance.workers" in alone.sentence
    assert not found.worker(4.0, 0, "") and found.remedies(5.0, improved(placement, loads, found), placement, loads, {}, TARGET) == []


def test_remedies_are_applied_no_oftener_than_loads_can_be_learned():
    found = Saturation()
    assert not found.is_due(0.0)
    found.connection(0.0, 1, "THROTTLED", "", 100.0)
    assert found.is_due(saturation.SETTLE_S)
    found.applied_s = 2.0
    assert not found.is_due(2.0 + saturation.PAUSE_S / 2) and found.is_due(2.0 + saturation.PAUSE_S)
    found.connection(40.0, 1, "OK", "", 50.0)
    assert not found.is_due(100.0)
    found.connection(101.0, 1, "THROTTLED", "", 80.0)
    assert found.limits() == {1: 80.0}, "what it carried the last time counts"


def test_what_connections_were_limited_to_outlives_the_supervisor():
    found = Saturation()
    found.connection(100.0, 3, "THROTTLED", "400 of 900 due", 400.0)
    found.connection(101.0, 4, "THROTTLED", "10 of 20 due", 10.0)
    found.connection(200.0, 4, "FINE", "", 20.0)
    again = Saturation()
    again.restore(json.loads(json.dumps(found.saved(300.0))), 7.0)      # another machine clock
    assert again.limits() == found.limits() == {3: 400.0, 4: 10.0} and not again.throttled(), "what lasts is told again"
    assert again.connection(8.0, 3, "THROTTLED", "300 of 900 due", 300.0) and again.throttled() == {3}
    again.keep(7.0 - 100.0 + saturation.LIMIT_S, {3, 4})
    assert set(again.limits()) == {3}, "the age of a limit goes on"
    with pytest.raises(ValueError, match="damaged"):
        again.restore([[1, 2]], 0.0)
