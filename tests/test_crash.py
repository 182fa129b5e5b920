"""Processes of a running instance are killed, stopped and lied to; what a reader in another process sees must stay true.

Every record read here is checked against the market the simulator draws: see crash_support.Witness.
"""
import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest

from feedhandler import instance
from crash_support import GAP, SESSION_DOWN, STALE, Instance, Simulated, Witness, until

KILLS, KILLS_LONG = 200, 1000
KILL_SECONDS = 40.0                  # the default run stops counting then; --long goes on to its number
FRESH_MS = 1000                      # ten times the target, for a busy machine; the figures are printed
LEARNED_S = 22.0                     # a connection's own pace is known after 20 s
SILENT_S = 1.5                       # a reader calls a worker silent after 100 ms; ten times that and its naps


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    one = Simulated(tmp_path_factory.mktemp("crash"))
    yield one
    one.close()


@pytest.fixture(scope="module", autouse=True)
def steady(tmp_path_factory):
    """An instance that is busy from the first test on: how long a silence may be is learned over 20 s."""
    one = Simulated(tmp_path_factory.mktemp("steady"), rate=160)
    with Instance(one, workers=1) as running:
        running.begun = time.monotonic()
        yield running
    one.close()


@pytest.fixture(scope="module")
def market(simulated):
    return simulated.market()


def spread(values):
    """p50, p99 and most, in words."""
    values = sorted(values)
    return f"p50 {values[len(values) // 2]:.1f}, p99 {values[int(len(values) * 0.99)]:.1f}, most {values[-1]:.1f} ms of {len(values)}"


# Stress. What: a worker is killed with SIGKILL at random moments, many while data flows, some while it is still coming up.
# Why: no instant of a writer's life may leave a torn record, a lost position or a silent gap.
# Sizes: 200 kills (1,000 with --long) at 1,500 messages a second, in-band and REST books, two workers, one of them left alone.
# A failure means: shared memory, resume or resubscription showed a reader something that was not so.
def test_a_worker_killed_200_times_tears_no_record_and_hides_no_gap(simulated, market, request, capsys):
    rng, long = random.Random(7), request.config.getoption("--long")
    wanted, end = (KILLS_LONG, float("inf")) if long else (KILLS, time.monotonic() + KILL_SECONDS)
    with Instance(simulated) as one, Witness(one.name, market) as witness:
        victim, other = witness.ring(0), witness.ring(1)
        witness.until(lambda: victim.fresh > 200 and other.fresh > 200, "data of both workers")
        bystander = one.pids()[1]
        kills, fresh = [], {}        # ns of each kill; ns of the first fresh record after it, where we waited for it
        while len(kills) < wanted and time.monotonic() < end:
            calm = rng.random() < 0.75
            witness.read(rng.uniform(0, 0.06 if calm else 0.02))
            epochs = victim.epochs
            kills.append(time.time_ns())
            os.kill(one.pids()[0], signal.SIGKILL)
            witness.until(lambda: victim.epochs == epochs + 1, "the successor's EPOCH")
            if calm:
                witness.until(lambda: victim.fresh_ns, "fresh data")
                fresh[len(kills) - 1] = victim.fresh_ns
        witness.until(lambda: all(known.book for known in witness.known.values() if known.ring is victim), "every book is whole again")
        died = [entry["ts_ns"] for entry in one.events("worker_died")]
        assert len(died) == len(kills) == victim.epochs, "every death was noticed, once"
        assert victim.gaps >= len(kills) and victim.epoch == len(kills) + 1
        assert (other.epochs, other.gaps, other.downs, other.void) == (0, 0, 0, 0) and one.pids()[1] == bystander
        assert all(known.seen >= {0, 3} for known in witness.known.values()), "trades and books of every instrument were seen"
    fresh_ms = [(at - died[kill]) / 1e6 for kill, at in fresh.items()]
    with capsys.disabled():
        print(f"\n{len(kills)} kills, {victim.records + other.records:,} records checked, torn 0, unfinished and void {victim.void}"
              f"\n  noticed after     {spread([(at - kill) / 1e6 for at, kill in zip(died, kills)])}"
              f"\n  then fresh after  {spread(fresh_ms)}")
    assert sorted(fresh_ms)[len(fresh_ms) // 2] < FRESH_MS


# -- the supervisor -----------------------------------------------------------------------------------------------

def test_without_a_supervisor_data_flows_on_and_the_next_start_adopts_what_lives(simulated, market):
    with Instance(simulated) as one, Witness(one.name, market) as witness:
        rings = [witness.ring(0), witness.ring(1)]
        witness.until(lambda: min(ring.fresh for ring in rings) > 100, "data of both workers")
        before = one.pids()
        one.kill_supervisor()
        counts = [ring.records for ring in rings]
        witness.read(0.5)
        assert all(ring.records > count + 100 for ring, count in zip(rings, counts)), "data flows on"
        said = one.verb("status")
        assert said.returncode == 4 and "2 of 2 workers go on" in said.stdout and f"feedhandler start" in said.stdout
        done = one.start()
        assert done.returncode == 0 and "adopted 2 living workers" in done.stdout, done.stdout + done.stderr
        witness.read(0.3)
        status = one.status()
        assert status["state"] == "ok" and [row["pid"] for row in status["workers"]] == before
        assert [row["epoch"] for row in status["workers"]] == [1, 1]
        assert [(ring.epochs, ring.gaps, ring.downs, ring.silent) for ring in rings] == [(0, 0, 0, 0)] * 2
        assert one.verb("subs", "list").returncode == 0

        one.kill_supervisor()
        os.kill(before[0], signal.SIGKILL)
        witness.until(lambda: rings[0].silent, "the reader is told that nobody writes")
        assert "1 of 2 workers" in one.verb("status").stdout
        done = one.start()
        assert done.returncode == 0 and "adopted 1 living worker" in done.stdout, done.stdout + done.stderr
        witness.until(lambda: rings[0].epochs == 1 and rings[0].fresh_ns, "the dead worker's ring goes on")
        witness.until(lambda: rings[0].lives == 1, "the reader is told that it lives again")
        assert one.pids()[0] != before[0] and one.pids()[1] == before[1]
        assert (rings[1].epochs, rings[1].gaps, rings[1].downs, rings[1].silent) == (0, 0, 0, 0)

        one.kill_supervisor()
        done = one.verb("stop")
        assert done.returncode == 0 and "ended 2 workers" in done.stdout


# -- hung and dying workers ---------------------------------------------------------------------------------------

def test_a_hung_worker_is_told_to_readers_and_replaced_and_a_dying_one_is_quarantined_alone(simulated, market, capsys):
    with Instance(simulated, restart="crashes = 4\nwindow_s = 60") as one, Witness(one.name, market) as witness:
        victim, other = witness.ring(0), witness.ring(1)
        witness.until(lambda: min(victim.fresh, other.fresh) > 100, "data of both workers")
        begin = time.monotonic()
        os.kill(one.pids()[0], signal.SIGSTOP)
        witness.until(lambda: victim.silent, "WORKER_SILENT")
        silent_s = time.monotonic() - begin
        witness.until(lambda: victim.epochs == 1 and victim.fresh_ns, "a successor's data")
        fresh_s = time.monotonic() - begin
        assert silent_s < SILENT_S and victim.lives == 1 and victim.gaps
        for death in range(2, 5):
            epochs = victim.epochs
            os.kill(one.pids()[0], signal.SIGKILL)
            if death < 4:
                witness.until(lambda: victim.epochs == epochs + 1 and victim.fresh_ns, f"data after death {death}")
        witness.until(lambda: victim.silent == 2, "the reader is told that nobody writes")
        until(lambda: one.events("worker_quarantined"), "quarantine")
        records = other.records
        witness.read(0.3)
        assert other.records > records and (other.epochs, other.gaps, other.downs, other.silent) == (0, 0, 0, 0)
        said = one.verb("status")
        assert said.returncode == 4 and "worker 0 is QUARANTINED: it died 4 times" in said.stdout
        assert victim.epochs == 3, "nobody starts it again"
    with capsys.disabled():
        print(f"\nhung worker: told after {silent_s * 1e3:.0f} ms, replaced and fresh after {fresh_s * 1e3:.0f} ms")


# -- readers ------------------------------------------------------------------------------------------------------

READER = """
import sys, feedhandler
feed = feedhandler.attach(sys.argv[1], reader_name=sys.argv[2])
print("attached", flush=True)
for record in feed: pass
"""


def reader(one, name):
    process = subprocess.Popen([sys.executable, "-c", READER, one.name, name], env=one.env, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "attached\n"
    return process


def listed(one):
    return {row["name"]: row for row in json.loads(one.verb("readers", "--json").stdout)["readers"]}


def test_stopped_and_killed_readers_cost_the_writer_nothing_and_their_slots_come_back(simulated, market):
    with Instance(simulated) as one, Witness(one.name, market) as witness:
        rings = [witness.ring(0), witness.ring(1)]
        witness.until(lambda: min(ring.fresh for ring in rings) > 100, "data of both workers")
        stopped, killed = reader(one, "stopped"), reader(one, "killed")
        try:
            stopped.send_signal(signal.SIGSTOP)
            killed.kill()
            killed.wait()
            counts = [ring.records for ring in rings]
            witness.read(0.5)
            assert all(ring.records > count + 100 for ring, count in zip(rings, counts)), "data flows on"
            rows = listed(one)
            assert rows["stopped"]["alive"] and rows["stopped"]["lag"] > 100 and not rows.get("killed", {}).get("alive")
            successor = reader(one, "successor")
            assert set(listed(one)) == {"witness", "stopped", "successor"}, "the dead reader's slot was taken"
            successor.kill()
            successor.wait()
        finally:
            stopped.kill()
            stopped.wait()
        assert [(ring.epochs, ring.gaps, ring.downs, ring.silent) for ring in rings] == [(0, 0, 0, 0)] * 2


def test_a_readers_file_full_of_garbage_disturbs_nobody(simulated, market):
    rng = random.Random(11)
    with Instance(simulated) as one, Witness(one.name, market) as witness:
        rings = [witness.ring(0), witness.ring(1)]
        witness.until(lambda: min(ring.fresh for ring in rings) > 100, "data of both workers")
        path, before = f"{one.directory}/readers", one.pids()
        size = os.path.getsize(path)
        fd = os.open(path, os.O_RDWR)
        try:
            for fill in (rng.randbytes, lambda count: b"\xff" * count, lambda count: bytes(count), rng.randbytes):
                os.pwrite(fd, fill(size), 0)
                witness.read(0.1)
                with Witness(one.name, market) as late:
                    late.until(lambda: late.ring(0).fresh > 10 and late.ring(1).fresh > 10, "a new reader reads")
                said = one.verb("readers")
                assert said.returncode == 0 and said.stdout.replace("\n", "").isprintable()
            os.kill(before[0], signal.SIGKILL)
            witness.until(lambda: rings[0].epochs == 1 and rings[0].fresh_ns, "a successor starts beside a damaged readers file")
        finally:
            os.close(fd)
        assert one.pids()[1] == before[1] and (rings[1].epochs, rings[1].gaps, rings[1].downs, rings[1].silent) == (0, 0, 0, 0)


# -- half-open connections ----------------------------------------------------------------------------------------

def test_a_dead_path_is_stale_within_a_second_and_given_up_within_four(steady, market, capsys):
    """The simulator's socket drops whatever our kernel sends, so that no probe is answered: operations.md 8."""
    with Witness(steady.name, market) as witness:
        ring = witness.ring(0)
        witness.until(lambda: time.monotonic() - steady.begun > LEARNED_S and ring.fresh > 50, "20 s of data")
        before = {code: ring.codes[code] for code in (STALE, SESSION_DOWN, GAP)}
        steady.simulated.ask("fault", kind="half_open", venue="deribit", count=1)
        begin, seen = time.monotonic(), {}
        for code in (STALE, SESSION_DOWN, GAP):
            witness.until(lambda: ring.codes[code] > before[code], f"status {code}")
            seen[code] = time.monotonic() - begin
        books = [known for known in witness.known.values() if known.sim.venue == "deribit"]
        witness.until(lambda: books and all(known.book for known in books), "the books are whole again")
        whole_s = time.monotonic() - begin
        assert ring.downs == 1, "the other connection is not touched"
    with capsys.disabled():
        print(f"\nhalf-open: stale after {seen[STALE]:.2f} s, given up after {seen[SESSION_DOWN]:.2f} s, whole again after {whole_s:.2f} s")
    assert seen[STALE] < 10 and seen[SESSION_DOWN] < 35
