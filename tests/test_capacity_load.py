"""Loads are learned, forgotten, merged and kept; profiles say every budget with where it comes from; the verbs show both."""
import json
import math
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feedhandler import control, instance, venues
from feedhandler.capacity import load, profile
from feedhandler.capacity.load import Loads, bursts, prior
from feedhandler.capacity.plan import Wanted
from feedhandler.supervisor import client, learning

PRODUCT = pathlib.Path(__file__).parents[1]
NAME = f"test-{os.getpid()}-cap"
WAIT_S = 20.0
KEY = ("v", "e", "w")


def wanted(wire="w", channel="book", kind="spot"):
    return Wanted("v", "e", wire, 0, "S", 0, channel, kind)


# -- loads -----------------------------------------------------------------------------------------------------------

def test_a_steady_rate_is_learned_exactly_and_a_change_is_half_forgotten_after_its_half_life():
    loads = Loads()
    for step in range(100):
        loads.measure(KEY, step * 5.0, 5.0, 500, size=50_000, records=1500, cpu_ns=2000)
    found = loads.of(wanted())
    assert (found.messages_per_s, found.bytes_per_s, found.records_per_s, found.cpu_ns) == pytest.approx((100, 10_000, 300, 2000))
    for step in range(12):                                     # a minute of silence
        loads.measure(KEY, 500 + step * 5.0, 5.0, 0)
    assert found.messages_per_s == pytest.approx(50, rel=0.02)
    assert found.bytes_per_s / found.messages_per_s == pytest.approx(100), "what was not measured keeps its share of a message"


def test_the_length_of_the_steps_does_not_matter():
    fine, coarse = Loads(), Loads()
    for loads, step in ((fine, 1.0), (coarse, 10.0)):
        for second in range(0, 1200, int(step)):
            loads.measure(KEY, second, step, (100 if second < 600 else 300) * step)
    assert fine.of(wanted()).messages_per_s == pytest.approx(coarse.of(wanted()).messages_per_s, rel=0.001)


def test_a_first_value_does_not_stick():
    loads = Loads()
    loads.measure(KEY, 1, 1.0, 10_000)       # a snapshot
    for second in range(9):
        loads.measure(KEY, 2 + second, 1.0, 100)
    assert loads.of(wanted()).messages_per_s == pytest.approx(1090, rel=0.01), "the plain mean of its first ten seconds"


def test_growth_is_found_once_a_stream_was_watched_for_long_enough():
    loads, rate = Loads(), 100.0
    for step in range(1500):
        loads.measure(KEY, step * 10.0, 10.0, rate * 10)
        rate += 0.1
        if step == 40:
            assert loads.of(wanted()).growth == 0
    assert loads.of(wanted()).growth == pytest.approx(0.01, rel=0.05)


@pytest.mark.parametrize("channel,kind,rate", [("quote", "perpetual", 167), ("quote", "option", 76), ("book", "future", 73), ("none", "spot", 10)])
def test_a_stream_never_seen_has_the_prior_of_its_channel_and_kind(channel, kind, rate):
    found = Loads().of(wanted("new", channel, kind))
    assert (found.messages_per_s, found.seconds) == (rate, 0)


def test_every_channel_has_a_prior():
    from feedhandler.venue import CHANNELS
    assert all((channel, "") in load.RATES and channel in load.BYTES for channel in CHANNELS)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 3_000_000_000), max_size=60))
def test_bursts_are_the_99th_percentile_of_messages_in_sliding_windows(times):
    times.sort()
    for window, found in zip(load.BURST_WINDOWS_NS, bursts(times)):
        counts = sorted(sum(time - window < other for other in times[:at + 1]) for at, time in enumerate(times))
        assert found == (counts[math.ceil(len(counts) * 0.99) - 1] if counts else 0)


def test_a_burst_is_held_and_fades():
    loads = Loads()
    loads.measure(KEY, 0, 60.0, 60, burst=(5.0, 20.0, 90.0))
    loads.measure(KEY, 3600, 3600.0, 60, burst=(1.0, 1.0, 80.0))
    assert loads.of(wanted()).bursts == pytest.approx((2.5, 10.0, 80.0))


rows = st.dictionaries(st.text("abc", min_size=1, max_size=3), st.tuples(st.floats(0.1, 1e4), st.integers(0, 10**6)), max_size=8)


@settings(max_examples=60, deadline=None)
@given(rows)
def test_what_was_learned_survives_saving_and_merging_with_nothing(rows):
    loads = Loads()
    for wire, (seconds, messages) in rows.items():
        loads.measure(("v", "e", wire), 100.0, seconds, messages)
    again = Loads.load(json.loads(json.dumps(loads.dump())))
    assert again.entries == loads.entries
    again.merge(Loads())
    assert again.entries == loads.entries


def test_merging_weighs_by_the_time_watched():
    first, second = Loads(), Loads()
    first.measure(KEY, 10, 30.0, 3000, burst=(9.0, 9.0, 9.0))
    second.measure(KEY, 20, 10.0, 5000, burst=(1.0, 12.0, 1.0))
    first.merge(second)
    found = first.of(wanted())
    assert (found.messages_per_s, found.seconds, found.seen_s, found.bursts) == (pytest.approx(200), 40, 20, (9, 12, 9))
    assert second.of(wanted()).messages_per_s == 500


def test_memory_is_bounded_and_the_longest_unseen_go_first():
    loads = Loads(entry_max=10)
    for second in range(25):
        loads.measure(("v", "e", f"w{second}"), float(second), 1.0, 1)
        assert len(loads.entries) <= 10
    assert [key[2] for key in loads.entries] == [f"w{second}" for second in range(15, 25)] and loads.forgotten == 15
    assert len(Loads.load(loads.dump(), entry_max=3).entries) == 3


GOOD = ["v", "e", "w", 1, 1, 1, 1, 1, 1, 1, [0, 0, 0]]


@pytest.mark.parametrize("damage", [{}, {"streams": 1}, {"streams": [GOOD[:-1]]}, {"streams": [GOOD[:3]]}, {"streams": [[*GOOD[:-1], [0, 0]]]},
                                    {"streams": [[*GOOD[:3], -1, *GOOD[4:]]]}, {"streams": [[*GOOD[:3], float("nan"), *GOOD[4:]]]}, [], None])
def test_damaged_loads_are_refused_with_a_sentence_and_whole_ones_are_not(damage, tmp_path):
    Loads.load({"streams": [GOOD]})
    with pytest.raises(ValueError):
        Loads.load(damage)
    path = tmp_path / "loads.json"
    path.write_text(json.dumps(damage))
    loads, said = learning.read(path)
    assert loads.entries == {} and "learned anew" in said


@pytest.mark.parametrize("seconds,messages", [(0, 1), (-1, 1), (1, -1)])
def test_what_is_no_measurement_is_refused(seconds, messages):
    with pytest.raises(ValueError, match="is no measurement"):
        Loads().measure(KEY, 0, seconds, messages)


# -- learning from workers ---------------------------------------------------------------------------------------------

def test_a_worker_s_answers_become_rates_and_bytes_and_a_new_process_begins_anew():
    loads = Loads()
    learner = learning.Learner(loads, spin=True)
    streams = {id: control.StreamPlan(id, 0, "e", f"w{id}", "S", "trade") for id in (1, 2)}
    homes = {id: ("v", 0, 7) for id in streams}

    def answer(pid, at, counts, frames, size, throttled=()):
        states = [control.StreamState(id, "LIVE", messages=count) for id, count in zip((1, 2, 99), (*counts, 5))]
        learner.heard(0, pid, states, [{"connection": 7, "frames": frames, "bytes": size, "records": 0}], streams, homes, throttled, at)
    answer(1, 0.0, (100, 1000), 1100, 110_000)
    assert loads.entries == {}, "one answer is no rate"
    answer(1, 5.0, (200, 1400), 1600, 210_000)          # 500 frames of 200 bytes
    assert {key[2]: (of.messages_per_s, of.bytes_per_s) for key, of in loads.entries.items()} == {"w1": (20, 4000), "w2": (80, 16_000)}
    answer(2, 10.0, (0, 0), 0, 0)
    answer(2, 15.0, (50, 0), 50, 0)
    assert loads.entries["v", "e", "w1"].seconds == 10 and loads.entries["v", "e", "w2"].messages_per_s == pytest.approx(40)
    answer(2, 20.0, (51, 1), 52, 5000, throttled={7})
    assert loads.entries["v", "e", "w1"].seconds == 10, "what a venue holds back is no measure of what the stream is"


def test_records_and_bursts_are_learned_and_two_lines_of_a_stream_are_one_load():
    loads = Loads()
    learner = learning.Learner(loads, spin=True)
    streams = {id: control.StreamPlan(id, 0, "e", "w", "S", "book") for id in (1, 2)}
    homes = {1: ("v", 0, 7), 2: ("v", 0, 8)}
    for at, messages, records in ((0.0, 1000, 5000), (10.0, 3000, 15_000)):      # both lines bring each message
        states = [control.StreamState(id, "LIVE", messages=messages, records=records, bursts=(3.0, 9.0, 150.0)) for id in (1, 2)]
        sessions = [{"connection": id, "frames": messages // 2, "bytes": 100 * messages} for id in (7, 8)]
        learner.heard(0, 1, states, sessions, streams, homes, (), at)
    (found,) = loads.entries.values()
    assert (found.messages_per_s, found.records_per_s, found.bytes_per_s, found.bursts) == (100, 1000, 20_000, (3.0, 9.0, 150.0))
    assert found.seconds == 10, "measured once, not once a line"


def test_counters_that_begin_anew_make_no_rate():
    loads = Loads()
    learner = learning.Learner(loads, spin=True)
    streams, homes = {1: control.StreamPlan(1, 0, "e", "w", "S", "book")}, {1: ("v", 0, 7)}
    for at, messages in ((0.0, 1 << 62), (5.0, 10), (10.0, 60)):
        learner.heard(0, 1, [control.StreamState(1, "LIVE", messages=messages)], [], streams, homes, (), at)
    assert loads.entries["v", "e", "w"].messages_per_s == 10 and loads.entries["v", "e", "w"].seconds == 5


# -- profiles --------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", venues.names())
def test_every_profile_says_all_kinds_of_budget_with_source_and_date(name):
    for endpoint, document in venues.load(name, 1).profiles.items():
        rows = profile.described(document)
        assert {row["kind"] for row in rows} == {"connection", "address", "over time", "learned"}
        assert document["sources"] and document["confidence"] and time.strptime(document["as_of"], "%Y-%m-%d")
        assert not any(source.startswith("S-") for source in document["sources"]), "a source is named, not numbered"


def test_a_profile_s_rows_say_what_is_documented_and_what_it_is_kept_to():
    rows = {(row["kind"], row["what"]): (row["documented"], row["used_to"]) for row in profile.described({
        "venue": "v", "endpoint": "e", "conn": {"max_open": 32, "counts_http": True, "attempts": [{"n": 300, "per_s": 300, "scope": "ip"}]},
        "sub": {"max_per_conn": 1024, "soft_per_conn": 200, "max_args_chars_per_conn": 21_000, "soft_by_channel": {"books*": 30}},
        "client_msg": {"windows": [{"n": 480, "per_s": 3600, "scope": "conn"}], "credits": {"cost": 3000, "pool": 30_000, "refill_per_s": 10_000}}})}
    assert rows["connection", "streams"] == (1024, 200) and rows["connection", "streams of books*"] == (30, 30)
    assert rows["address", "connections open (ip)"] == (32, 24) and rows["address", "connection attempts (ip)"] == ("300 in 300 s", "240 in 300 s")
    assert rows["over time", "messages we send"] == ("480 in 3600 s", "384 in 3600 s")
    assert rows["over time", "credits"] == ("3,000 a subscribe of 30,000, 10,000 more a second", "24,000, 8,000 a second")


def verb(*words, env):
    return subprocess.run([sys.executable, "-m", "feedhandler", *words], capture_output=True, text=True, timeout=60, env=env)


def test_the_command_prints_profiles_with_a_configuration_s_limits_in_their_places(tmp_path):
    env = {**os.environ, "PYTHONPATH": str(PRODUCT)}
    path = tmp_path / "a.toml"
    path.write_text('[venues.okx.limits.public]\nmax_per_conn = 7\n[[subscribe]]\nvenue = "okx"\nsymbols = ["BTC-USDT"]\nchannels = ["trade"]\n')
    done = verb("capacity", "--profile", "--json", "-c", str(path), env=env)
    found = {(row["venue"], row["endpoint"]): row for row in json.loads(done.stdout)["profiles"]}
    assert set(found) == {(name, endpoint) for name in venues.names() for endpoint in venues.load(name, 1).profiles}
    assert found["okx", "public"]["overrides"] == ["max_per_conn"] and found["okx", "public"]["budgets"][0]["documented"] == 7
    assert "480 in 3600 s" in verb("capacity", "--profile", env=env).stdout
    assert verb("capacity", "-c", str(path), env=env).returncode == 2 and verb("capacity", "-n", NAME, env=env).returncode == 3


# -- a running instance ------------------------------------------------------------------------------------------------

@pytest.fixture
def instance_of(tmp_path):
    """Starts an instance over a simulated venue; answers (env, first symbol's rate learned before)."""
    env = {**os.environ, "PYTHONPATH": str(PRODUCT), "XDG_STATE_HOME": str(tmp_path)}
    path = tmp_path / "a.toml"
    words = ["simulate", "--venue", "okx", "--instruments", "4", "--rate", "400", "--no-limits", "--config-out", str(path), "--name", NAME]
    process = subprocess.Popen([sys.executable, "-m", "feedhandler", *words], env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: path.exists() and "[[subscribe]]" in path.read_text())
        yield env, path
    finally:
        verb("stop", "-n", NAME, env=env)
        process.send_signal(signal.SIGINT)
        process.wait(10)
    assert not os.path.exists(instance.directory(NAME))


def until(condition):
    deadline = time.monotonic() + WAIT_S
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {WAIT_S} s"
        time.sleep(0.02)
    return value


def test_an_instance_learns_shows_and_remembers_its_streams_and_plans_by_what_it_remembers(instance_of, tmp_path):
    env, path = instance_of
    assert verb("start", "-c", str(path), "-n", NAME, env=env).returncode == 0
    count = client.request(NAME, "status")["streams"]["total"]
    document = until(lambda: (found := client.request(NAME, "capacity"))["learned"] == count and found)
    used = {(row["where"], row["what"]): row["used"] for row in document["budgets"]}
    assert used["worker 0", "streams"] == count == used["address okx/public", "streams"] and used["connection 1", "messages/s"] > 10
    shown = verb("capacity", "-n", NAME, env=env)
    assert shown.returncode == 0 and f"{count} of {count} streams measured" in shown.stdout and "streams books*" in shown.stdout
    proposal = json.loads(verb("plan", "-n", NAME, "--json", env=env).stdout)
    assert proposal["moves"] == [] and [row["limit"] for row in proposal["after"]] == [row["limit"] for row in proposal["before"]]
    rows = client.request(NAME, "subs")["streams"]
    homes = {row["wire"]: row["connection"] for row in rows}
    assert verb("stop", "-n", NAME, env=env).returncode == 0

    saved = learning.path_of(NAME).replace(os.path.dirname(os.path.dirname(learning.path_of(NAME))), str(tmp_path))
    loads, said = learning.read(saved)
    assert said == "" and {key[2] for key in loads.entries} == set(homes)
    heavy = rows[0]["wire"]
    for key in loads.entries:
        loads.measure(key, time.time(), 3600.0, 3600 * (9000 if key[2] == heavy else 5))
    learning.write(saved, loads)
    assert verb("start", "-c", str(path), "-n", NAME, env=env).returncode == 0
    connections = {row["wire"]: row["connection"] for row in client.request(NAME, "subs")["streams"]}
    assert sum(connection == connections[heavy] for connection in connections.values()) == 1, "a stream remembered as heavy begins on its own connection"
    screen = verb("plan", "-n", NAME, env=env)
    assert screen.returncode == 0 and f"{NAME}: nothing would be moved" in screen.stdout

    os.kill(client.request(NAME, "status")["pid"], signal.SIGKILL)      # its workers go on, the next start adopts them
    until(lambda: not instance.locked(NAME))
    other = next(wire for wire in connections if connections[wire] != connections[heavy])
    for key in loads.entries:
        loads.measure(key, time.time(), 36_000.0, 36_000 * (8000 if key[2] == other else 5))
    learning.write(saved, loads)
    assert verb("start", "-c", str(path), "-n", NAME, env=env).returncode == 0
    proposal = json.loads(verb("plan", "-n", NAME, "--json", env=env).stdout)
    move, = proposal["moves"]
    assert [stream["wire"] for stream in move["streams"]] == [other] and move["reason"].startswith("it brings ")
    opened = f"connection {move['streams'][0]['to']}"
    assert opened not in {row["where"] for row in proposal["before"]} and opened in {row["where"] for row in proposal["after"]}
    assert {row["wire"]: row["connection"] for row in client.request(NAME, "subs")["streams"]} == connections, "shown, not made"
    assert "move okx" in (screen := verb("plan", "-n", NAME, env=env).stdout) and "1 move would pay" in screen
