"""Budgets of an address that several instances share: in the file alone, and with instances against simulated venues."""
import json
import os
import signal
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fault_support import Place, within_budgets
from feedhandler import config, instance
from feedhandler.capacity.budget import SECOND
from feedhandler.capacity.profile import Window
from feedhandler.supervisor import client, ledger
from feedhandler.supervisor.ledger import Need
from feedhandler.supervisor.shard import VenueHome

WAIT_S = 40.0
KEY = "connect a"
ME = [(os.getpid(), instance.pid_start())]
DEAD = [(os.getpid(), 1)]


def made(path, clock=None, boot="here", said=None):
    """A Ledger as another process would open it, with a clock and a boot of its own."""
    found = ledger.Ledger(str(path), (said if said is not None else []).append, *([] if clock is None else [clock]))
    found.boot_id = boot
    return found


# -- what is spent -----------------------------------------------------------------------------------------------------

steps = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 2 * SECOND), st.integers(1, 5), st.sampled_from(["take", "take", "take", "crash", "reboot"])),
                 max_size=60)


@settings(max_examples=40, deadline=None)
@given(steps, st.integers(1, 20), st.integers(0, 10**12))
def test_no_interval_holds_more_than_80_percent_with_two_instances_crashes_and_reboots(tmp_path_factory, steps, n, boottime):
    path, real = tmp_path_factory.mktemp("ledger") / "budgets.json", [10**18]
    boot, began, spent, windows = 0, [10**18 - boottime], [], [Window(n, 1.0), Window(3 * n, 5.0)]

    def opened():
        found = made(path, lambda: real[0] - began[0], f"boot {boot}")
        found.open(KEY, windows)
        return found
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledger.time, "time_ns", lambda: real[0])
        two = [opened(), opened()]
        for who, wait, want, what in steps:
            real[0] += wait
            if what == "reboot":
                boot, began[0] = boot + 1, real[0] - SECOND
                two = [opened(), opened()]
            granted = two[who].take(KEY, want)
            if what == "crash":      # between the grant and its use: what was granted may still have been used
                two[who] = opened()
            spent.append((real[0], granted))
    for window in windows:
        for begin, _ in spent:
            assert sum(amount for at, amount in spent if begin <= at < begin + window.per_s * SECOND) <= max(1, window.n * 80 // 100)


def test_a_wall_clock_that_jumps_neither_frees_nor_bans(tmp_path, monkeypatch):
    clock, wall = [10**12], [10**18]
    monkeypatch.setattr(ledger.time, "time_ns", lambda: wall[0])
    one = made(tmp_path / "b.json", lambda: clock[0])
    one.open(KEY, [Window(10, 60)])
    one.ban(KEY, 30, "429")
    for jump in (-10**17, 10**17):
        wall[0] += jump
        clock[0] += SECOND
        again = made(tmp_path / "b.json", lambda: clock[0])
        again.open(KEY, [Window(10, 60)])
        assert again.take(KEY, 1) == 0 and 27 < again.wait_s(KEY) < 30
    wall[0] -= 10**16       # and back, with a reboot in between: no time has passed for all we know
    clock[0] = SECOND
    again = made(tmp_path / "b.json", lambda: clock[0], "another boot")
    again.open(KEY, [Window(10, 60)])
    assert 27 < again.banned(KEY)[0] < 30 and again.banned(KEY)[1] == "429"


TAKER = """
import sys, time
from feedhandler.supervisor.ledger import Busy, Ledger
from feedhandler.capacity.profile import Window
ledger = Ledger(sys.argv[1], print)
ledger.open("connect a", [Window(10, 3600.0)], (5, 0.001))
end, got = time.monotonic() + 20, 0
for _ in range(60):
    try:
        got += ledger.take("connect a", 1)
    except Busy:
        pass
print(got)
"""


def test_two_processes_at_once_are_granted_80_percent_together_of_windows_and_credits(tmp_path):
    two = [subprocess.Popen([sys.executable, "-c", TAKER, str(tmp_path / "b.json")], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert sum(int(each.communicate(timeout=60)[0]) for each in two) == 4


def test_a_ban_heard_of_while_the_file_is_locked_holds_here_at_once_and_for_all_later(tmp_path):
    one, two = made(tmp_path / "b.json"), made(tmp_path / "b.json")
    for each in (one, two):
        each.open(KEY, [Window(10, 1.0)])
    with one._locked():
        two.ban(KEY, 60, "418")
        assert two.banned(KEY)[1] == "418"
        with pytest.raises(ledger.Busy):
            two.take(KEY, 1)
    assert two.take(KEY, 1) == 0
    assert one.take(KEY, 1) == 0 and one.banned(KEY)[1] == "418"


def test_a_punishment_without_an_end_doubles_when_it_comes_again_and_counts_once_an_event(tmp_path):
    clock, lengths = [10**12], []
    for _ in range(4):
        one = made(tmp_path / "b.json", lambda: clock[0])     # a restart forgets nothing
        one.open(KEY, [Window(10, 1.0)])
        for number in range(3):                               # three connections closed by the same event
            one.punish(KEY, 5.0, f"1008 Too many requests {number}")
        assert one.banned(KEY)[1].endswith("0")
        lengths.append(round(one.banned(KEY)[0]))
        clock[0] += int(one.wait_s(KEY) * SECOND) + SECOND
    assert lengths == [5, 10, 20, 40]
    clock[0] += 2 * 3600 * SECOND
    one.punish(KEY, 5.0, "1008")
    assert round(one.banned(KEY)[0]) == 5, "after a quiet hour it is the first again"
    one.ban(KEY, 100, "Retry-After")
    assert round(one.banned(KEY)[0]) == 100, "what the venue names goes before"


def test_rest_and_connections_share_a_ban_only_where_the_venue_counts_them_together():
    homes = {name: VenueHome(name, 0, None, "", config.parse("")) for name in ("deribit", "binance-spot", "okx")}
    assert homes["deribit"].counted_keys == [homes["deribit"].connect_key("v2")]
    assert not homes["okx"].counted_keys and not homes["binance-spot"].counted_keys
    assert homes["deribit"].http_open("v2") == 1 and homes["deribit"].typed["v2"].shares_operations
    assert not [name for name in ("okx", "binance-spot") for typed in homes[name].typed.values() if typed.shares_operations]


# -- what is held ------------------------------------------------------------------------------------------------------

def test_leases_are_granted_whole_beside_those_of_the_living_and_lapse_with_their_processes(tmp_path):
    one, two = made(tmp_path / "b.json"), made(tmp_path / "b.json")
    assert one.lease("one", {"held a": Need(20, 100, 25, None), "held b": Need(1, 70, None, 100)}, ME) == {}
    assert two.lease("two", {"held a": Need(5, 5, 25, None), "held b": Need(1, 31, None, 100)}, ME).keys() == {"held b"}
    two.look()
    assert two.others("one", "held a") == {}, "all or nothing"
    assert two.lease("two", {"held a": Need(5, 5, 25, None), "held b": Need(1, 30, None, 100)}, ME) == {}
    full = one.lease("one", {"held a": Need(21, 100, 25, None), "held b": Need(1, 70, None, 100)}, ME)
    assert full["held a"]["two"]["connections"] == 5
    assert one.lease("one", {"held a": Need(19, 100, 10, None)}, ME) == {}, "what is held may become less under any limit"
    assert two.lease("two", {"held a": Need(5, 5, 25, None)}, DEAD) == {}
    one.look()
    assert one.others("one", "held a") == {} and one.lease("one", {"held a": Need(25, 1, 25, None)}, ME) == {}


def test_a_lease_lives_with_its_workers_is_adopted_under_its_name_and_ends_with_the_boot(tmp_path):
    one, two = made(tmp_path / "b.json"), made(tmp_path / "b.json")
    assert one.lease("one", {"held a": Need(20, 1, 25, None)}, [*DEAD, *ME]) == {}, "a supervisor that died and its worker"
    assert two.lease("two", {"held a": Need(6, 1, 25, None)}, ME)
    assert made(tmp_path / "b.json").lease("one", {"held a": Need(24, 1, 25, None)}, ME) == {}
    assert made(tmp_path / "b.json").lease("one", {"held a": Need(30, 1, 25, None)}, ME, held=True) == {}, "what is open is written down"
    assert two.lease("two", {"held a": Need(1, 1, 25, None)}, ME)
    assert made(tmp_path / "b.json", boot="another").lease("two", {"held a": Need(25, 1, 25, None)}, ME) == {}


# -- two instances on one address --------------------------------------------------------------------------------------

SHARED = ("deribit", "binance-spot")
INSTRUMENTS = 7
PUNISHED = ("1008", "429", "418", "4000", "4009", "10028")


def crowded(text, deribit, spot):
    """A connection for every other stream at Deribit and for every one at Binance: many connections from few streams."""
    for venue, channels in (("deribit", deribit), ("binance-spot", spot)):
        head, _, tail = text.partition(f'venue = "{venue}"')
        text = head + f'venue = "{venue}"' + tail.replace('["trade", "quote", "book"]', json.dumps(channels), 1)
    return text + '\n[venues.deribit.limits.v2]\nsoft_per_conn = 2\n[venues.binance-spot.limits."spot.json"]\nsoft_per_conn = 1\n'


def wait_for(condition, what, seconds=WAIT_S):
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"not within {seconds} s: {what() if callable(what) else what}"
        time.sleep(0.1)
    return value


def all_up(*names, seconds=WAIT_S):
    def up():
        documents = [client.request(name, "status") for name in names]
        return all(one["connections"]["up"] == one["connections"]["planned"] and one["streams"].get("live") == one["streams"]["total"] for one in documents)
    wait_for(up, lambda: [(one["connections"], one["streams"], one["reasons"]) for name in names for one in [client.request(name, "status")]], seconds)


def unpunished(place, what):
    """The highest use of any limit is printed; nothing is above 80 % and the venues punished nobody."""
    usage, report = place.usage(), place.call(place.simulator.report)
    print(f"{what}: highest use of a limit {max(usage.values()):.0%}, {max(usage, key=usage.get)}")
    assert not within_budgets(usage), within_budgets(usage)
    assert not [close for close in report["closes"] if any(code in close for code in PUNISHED)], report["closes"]
    assert not any(ban["count"] for ban in report["bans"].values())
    assert not [answer for answer in report["rest"] if answer.endswith(("429", "418"))], report["rest"]


@pytest.fixture(scope="module")
def place():
    with Place(venues=SHARED, instruments=INSTRUMENTS, rate=600, config=lambda text, simulator: crowded(
            text, ["trade", "quote", "book"], ["quote", "trade", "agg_trade"])) as made_place:
        made_place.second = made_place.name + "-b"
        yield made_place
        made_place.command("stop", "-n", made_place.second)


def start_second(place, deribit, spot):
    path = place.folder / "second.toml"
    text = place.call(place.simulator.feedhandler_config, place.second)
    path.write_text(crowded(text, deribit, spot))
    return place.command("start", "-n", place.second, "-c", str(path))


def test_a_start_that_does_not_fit_beside_another_instance_is_refused_with_who_holds_how_much(place):
    done = start_second(place, ["trade", "quote", "book", "ticker"], ["quote"])
    held = -(-INSTRUMENTS * 3 // 2) + 1
    assert done.returncode == 1 and "deribit/v2 needs 14 connections, this address may hold 12" in done.stderr, done.stderr
    assert f"instance {place.name} holds {held} connections and {INSTRUMENTS * 3} streams at the same address" in done.stderr
    assert not os.path.exists(instance.directory(place.second))


def test_what_fits_starts_and_then_the_first_may_not_grow_into_it(place):
    done = start_second(place, ["trade", "quote"], ["quote", "trade"])
    assert done.returncode == 0, done.stderr
    refused = place.command("subs", "add", "deribit", *list(place.simulator.sides["deribit"].instruments), "ticker", "candle@1m", "-n", place.name)
    assert refused.returncode == 1 and f"instance {place.second} holds 8 connections" in refused.stderr and "nothing was changed" in refused.stderr
    held = {(row["endpoint"], row["what"]): row for row in client.request(place.name, "capacity")["held"]}
    assert held["v2", "connections"]["ours"] == 12 and held["v2", "connections"]["others"] == {place.second: 8} and held["v2", "connections"]["limit"] == 25
    text = place.command("capacity", "-n", place.name).stdout
    assert f"connections at deribit/v2: this instance 12, {place.second} 8; all together may 25" in text
    all_up(place.name, place.second)
    unpunished(place, "two instances started on one address")


@pytest.mark.timeout(300)
def test_fifty_disconnects_an_outage_and_a_dead_supervisor_on_a_shared_address_are_never_punished(place, request):
    outage_s = 60.0 if request.config.getoption("--long") else 2.0
    begun = place.simulator.connections_opened
    count = len(place.simulator.connections)
    assert count >= 50
    place.call(place.simulator.faults.clear)
    place.loop.call_soon_threadsafe(lambda: place.simulator.tasks.append(place.loop.create_task(place.simulator.refuse_tcp(outage_s))))
    for venue in SHARED:
        place.fault("disconnect", venue=venue, count=99)
    supervisor = client.request(place.name, "status")["pid"]
    os.kill(supervisor, signal.SIGKILL)
    wait_for(lambda: not instance.locked(place.name), "the supervisor is gone")
    done = place.command("start", "-n", place.name, "-c", str(place.folder / "config.toml"))
    assert done.returncode in (0, 4), done.stderr
    all_up(place.name, place.second, seconds=WAIT_S + outage_s)
    assert place.simulator.connections_opened - begun >= count
    unpunished(place, f"{count} disconnects at once, {outage_s:g} s without the venue, a supervisor killed")


def test_what_one_instance_lets_go_another_may_take(place):
    kept = {row["id"] for row in client.request(place.name, "conns")["connections"]}
    words = ("deribit", *list(place.simulator.sides["deribit"].instruments), "ticker", "candle@1m")
    assert place.command("stop", "-n", place.second).returncode == 0
    done = place.command("subs", "add", *words, "-n", place.name)
    assert done.returncode == 0, done.stderr
    all_up(place.name)
    assert kept < {row["id"] for row in client.request(place.name, "conns")["connections"]}, "an adopted instance keeps what it had"
    assert place.command("subs", "remove", *words, "-n", place.name).returncode == 0

    def less():
        rows = {(row["endpoint"], row["what"]): row for row in client.request(place.name, "capacity")["held"]}
        return rows["v2", "connections"]["ours"] == 12
    wait_for(less, "the lease is lowered once the connections are closed")
    unpunished(place, "one instance grew into the room of another")
