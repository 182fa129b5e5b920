"""feedhandler_feed.h over a live instance: opening, polling several rings, moves, silence, sleeping, and a strategy in C."""
import ctypes
import os
import struct
import subprocess
import threading
import time

import pytest

from csupport import ROOT
from ring_support import (ABSENT, BAD, EMPTY, I, LAPPED, LAST, LIVE, MOVED_IN, MOVED_OUT, NEW_RING, OK, P, ROW, SILENT,
                                SLOTS, STATUS, TEXT, U32, U64, Feed, corrupt, function, instance, numbers, place, program)  # noqa: F401


def test_feed_takes_the_rings_in_turn_and_keeps_each_ones_order(instance):
    writers = [instance.writer(worker=n) for n in (0, 1, 5)]
    feed = instance.feed()
    for number in range(6):
        for writer in writers:
            writer.put(number)
    turns = [feed.poll(2) for _ in range(9)]
    assert [turn[1] for turn in turns] == [0, 1, 5] * 3
    assert [numbers(turn[2]) for turn in turns] == [[0, 1]] * 3 + [[2, 3]] * 3 + [[4, 5]] * 3
    assert feed.poll()[0] == EMPTY


def test_feed_says_how_many_records_of_which_worker_were_lost(instance):
    instance.writer(worker=0)
    writer = instance.writer(worker=1)
    feed = instance.feed()
    writer.many(SLOTS + 1)
    assert feed.poll() == (LAPPED, 1, [], 320)
    assert feed.poll()[2][0][7] == 320


@pytest.mark.parametrize("missing", ["instruments", "state"])
def test_absent_table_is_named_and_nothing_stays_open(instance, missing):
    (instance.path / missing).rename(instance.path / "aside")
    feed = instance.feed()
    assert feed.result == ABSENT and missing in feed.error
    (instance.path / "aside").rename(instance.path / missing)


@pytest.mark.parametrize("name, offset, data", [("state", 0, b"\1"), ("state", 48, struct.pack("<I", 1024)),
                                                ("state", 52, struct.pack("<I", 5)), ("state", 52, struct.pack("<I", 2**32 - 1)),
                                                ("instruments", 8, b"\2"), ("instruments", 52, struct.pack("<I", 0))])
def test_table_that_is_not_what_it_says_is_refused(instance, name, offset, data):
    corrupt(instance.path / name, offset, data)
    feed = instance.feed()
    assert feed.result == BAD and name in feed.error


def test_one_bad_ring_refuses_the_instance(instance):
    instance.writer(worker=3)
    os.truncate(instance.path / "worker-3.ring", 5000)
    feed = instance.feed()
    assert feed.result == BAD and "worker-3.ring" in feed.error


def test_feed_without_readers_file_still_reads(instance):
    os.unlink(instance.path / "readers")
    writer, feed = instance.writer(), instance.feed()
    feed.wait(1000)
    writer.many(1)
    assert feed.poll()[0] == OK


def test_unknown_instance_is_absent():
    assert Feed(f"no-such-{os.getpid()}").result == ABSENT


def test_instrument_is_found_by_venue_and_symbol(instance):
    feed = instance.feed()
    find = function("t_feed_find", ctypes.c_int64, P, TEXT, TEXT)
    assert find(feed.at, b"binance-usdm", b"BTC-USDT-PERP") == 2
    assert find(feed.at, b"binance-spot", b"BTC-USDT-PERP") == find(feed.at, b"binance-usdm", b"BTC-USDT") == -1


def test_ring_of_a_late_worker_is_joined(instance):
    instance.writer(worker=0)
    feed = instance.feed()
    late = instance.writer(worker=1)
    function("t_feed_look", None, P)(feed.at)  # a second has passed
    assert feed.poll()[:2] == (NEW_RING, 1)
    late.put(8)
    assert feed.poll()[:2] == (OK, 1)


# Moves


def test_moved_in_waits_until_the_old_ring_is_read(instance):
    old, new = instance.writer(worker=1), instance.writer(worker=0)
    feed = instance.feed()
    for number in (100, 101, 102):
        old.put(number, instrument=9)
    old.status(MOVED_OUT, a=55, b=0, instrument=9)
    new.put(200, instrument=3)
    new.status(MOVED_IN, a=55, b=1, instrument=9, c=old.position)
    new.put(103, instrument=9)
    seen = [feed.poll(2) for _ in range(5)]
    assert [(worker, numbers(records)) for _, worker, records, _ in seen] == [
        (0, [200]), (1, [100, 101]), (1, [102, MOVED_OUT]), (0, [MOVED_IN]), (0, [103])]
    assert feed.poll()[0] == EMPTY


def test_two_instruments_that_swap_workers_block_nobody(instance):
    a, b = instance.writer(worker=0), instance.writer(worker=1)
    feed = instance.feed()
    a.put(1, instrument=1)
    b.put(2, instrument=2)
    a.status(MOVED_OUT, a=1, b=1, instrument=1)
    b.status(MOVED_OUT, a=2, b=0, instrument=2)
    left = a.position
    a.status(MOVED_IN, a=2, b=1, instrument=2, c=b.position)
    b.status(MOVED_IN, a=1, b=0, instrument=1, c=left)
    a.put(22, instrument=2)
    b.put(11, instrument=1)
    seen = [number for _, number in feed.drain()]
    assert sorted(seen) == sorted([1, 2, MOVED_OUT, MOVED_OUT, MOVED_IN, MOVED_IN, 22, 11])
    assert seen.index(1) < seen.index(11) and seen.index(2) < seen.index(22)


def test_instrument_of_a_worker_that_died_without_moved_out_still_comes_in_order(instance):
    old, new = instance.writer(worker=1), instance.writer(worker=0)
    feed = instance.feed()
    old.put(1, instrument=9)
    old.put(2, instrument=9)
    left = old.position
    old.put(3, instrument=9, flags=0)  # of an event it could not finish
    old.die()
    new.status(MOVED_IN, a=2, b=1, instrument=9, c=left)
    new.put(4, instrument=9)
    assert [number for _, number in feed.drain() if number != MOVED_IN] == [1, 2, 4]


def test_instrument_that_went_and_came_back_is_read_in_its_order_however_far_behind_the_reader_is(instance):
    a, b = instance.writer(worker=0), instance.writer(worker=1)
    feed = instance.feed()
    for number in range(20):        # a reader that takes two at a time meets the second move before the first
        b.put(200 + number, instrument=3)
    for turn, (old, new) in enumerate(((a, b), (b, a), (a, b), (b, a))):
        old.put(30 + turn, instrument=9)
        old.status(MOVED_OUT, a=1, b=1 - turn % 2, instrument=9)
        new.status(MOVED_IN, a=1, b=turn % 2, instrument=9, c=old.position)
    a.put(34, instrument=9)
    seen = []
    while (answer := feed.poll(2))[0] == OK:
        seen += [number for number in numbers(answer[2]) if 30 <= number < 40]
    assert seen == [30, 31, 32, 33, 34]


def test_moved_in_from_a_position_that_its_ring_never_had_holds_nothing_up(instance):
    old, new = instance.writer(worker=1), instance.writer(worker=0)
    feed = instance.feed()
    old.put(1, instrument=9)
    new.status(MOVED_IN, a=1, b=1, instrument=9, c=2**40)
    assert (0, MOVED_IN) in feed.drain()


@pytest.mark.parametrize("origin", [0, 7, 255, 2**63])
def test_moved_in_from_a_ring_that_is_not_there_holds_nothing_up(instance, origin):
    writer = instance.writer(worker=0)
    feed = instance.feed()
    writer.status(MOVED_IN, a=1, b=origin, instrument=9)
    assert feed.drain() == [(0, MOVED_IN)]


# Silence


def test_silent_worker_is_told_once_and_once_when_it_beats_again(instance):
    writer, feed = instance.writer(), instance.feed()
    assert feed.poll()[0] == EMPTY
    writer.heartbeat(age_ns=101_000_000)
    result, worker, records, _ = feed.poll()
    assert (result, worker) == (OK, 0) and records[0][4] == STATUS and records[0][7] == SILENT
    assert feed.poll()[0] == EMPTY
    writer.put(5)  # what is there is still delivered
    assert numbers(feed.poll()[2]) == [5]
    writer.heartbeat()
    assert numbers(feed.poll()[2]) == [LIVE]
    assert feed.poll()[0] == EMPTY


# Sleeping


def test_waiting_reader_is_woken_and_an_awake_one_costs_no_wake(instance):
    writer, feed = instance.writer(), instance.feed()
    writer.waits_on(instance.tables["readers"])
    writer.many(1)
    writer.wake()
    assert writer.wake_count == 0
    feed.wait(10**9)  # a record is there: no sleep
    assert numbers(feed.poll()[2]) == [0]
    waiting = ctypes.c_uint32.from_address(ctypes.c_void_p.from_address(instance.tables["readers"]).value + 64)
    waiting.value = 0
    sleeper = threading.Thread(target=feed.wait, args=(10**9,))
    started = time.monotonic()
    sleeper.start()
    while not waiting.value:
        os.sched_yield()
    writer.many(1)
    writer.wake()
    sleeper.join()
    assert writer.wake_count == 1
    assert feed.poll()[0] == OK
    assert time.monotonic() - started < 0.045  # woken, not timed out after 50 ms


def test_reader_that_lies_down_right_after_a_wake_looks_again_when_the_gap_ends(instance):
    writer, feed = instance.writer(), instance.feed()
    writer.waits_on(instance.tables["readers"])
    waiting = ctypes.c_uint32.from_address(ctypes.c_void_p.from_address(instance.tables["readers"]).value + 64)
    durations = []
    for _ in range(5):
        waiting.value = 1
        writer.wake(ahead_ns=2_000_000)     # a gap that no machine is too slow to lie down in
        started = time.monotonic()
        feed.wait(10**9)
        durations.append(time.monotonic() - started)
    assert writer.wake_count == 5
    assert min(durations) < 0.025  # and not 50 ms: the writer would not have woken it for a record of this moment


def test_forged_waiting_word_costs_one_wake_in_fifty_microseconds(instance):
    writer = instance.writer()
    writer.waits_on(instance.tables["readers"])
    waiting = ctypes.c_uint32.from_address(ctypes.c_void_p.from_address(instance.tables["readers"]).value + 64)
    started = time.monotonic_ns()
    for _ in range(3000):
        waiting.value = 1
        writer.wake()
    assert 1 <= writer.wake_count <= (time.monotonic_ns() - started) // 50_000 + 1


def test_no_wake_is_lost_between_two_processes_that_take_turns(instance):
    """What: two processes hand a number to and fro 4,000 times, each asleep whenever it waits.
    Why: a lost wake shows as a sleep of 50 ms. Sizes: two rings, two feeds, 8,000 sleeps.
    A failure means that more than 4 waits (one in a thousand turns) ran to their time-out."""
    done = subprocess.run([program("pingpong.c"), str(instance.path), "4000"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) <= 4


# Readers' slots


def test_reader_shows_who_it_is_and_frees_its_slot(instance):
    writer, feed = instance.writer(), instance.feed()
    path = instance.path / "readers"
    assert struct.unpack_from("<I", path.read_bytes(), 4096)[0] == os.getpid()
    writer.many(3)
    feed.poll()
    assert struct.unpack_from("<QQ", path.read_bytes(), 4096 + 64) == (3, 0)
    feed.close()
    assert struct.unpack_from("<I", path.read_bytes(), 4096)[0] == 0


def test_slot_of_a_dead_reader_is_taken_and_all_taken_is_no_error(instance):
    dead = subprocess.Popen(["true"])
    dead.wait()
    for slot in range(64):
        corrupt(instance.path / "readers", 4096 + slot * ROW["readers"], struct.pack("<I", dead.pid if slot == 40 else os.getpid()))
    assert instance.feed().result == OK
    assert struct.unpack_from("<I", (instance.path / "readers").read_bytes(), 4096 + 40 * ROW["readers"])[0] == os.getpid()
    assert instance.feed().result == OK  # no slot left: it reads unseen


# The strategy in C


@pytest.fixture(scope="module")
def strategy(tmp_path_factory):
    program = tmp_path_factory.mktemp("strategy") / "strategy"
    done = subprocess.run(["cc", "-O2", "-std=c11", "-Wall", "-Wextra", "-Wpedantic", "-Werror", f"-I{ROOT / 'cext' / 'include'}",
                           str(ROOT / "tests" / "c" / "strategy.c"), "-o", str(program), "-lm"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return program


def test_strategy_in_c_prints_the_trades_of_its_instrument(instance, strategy):
    writer = instance.writer()
    writer.waits_on(instance.tables["readers"])
    row = function("t_row", P, P, U32)(instance.tables["state"], 2)
    function("t_state_put", None, P, U64, ctypes.c_int64, U32)(row, 3, 6500000, 1)
    child = subprocess.Popen([strategy, str(instance.path), "binance-usdm", "BTC-USDT-PERP", "2"], stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    for instrument, price in [(2, 6500001), (1, 7), (2, 6500012)]:
        writer._put(False, instrument, 1, LAST, price, 5, 0, 0)
    writer.flush()
    writer.heartbeat()
    writer.wake()
    rest = child.communicate(timeout=10)[0]
    assert child.returncode == 0
    assert [line for line in rest.splitlines() if line not in ("silent", "live")] == [
        "trade 65000.01 5", "trade 65000.12 5", "touch 6500000 0"]


def test_strategy_without_its_instance_says_what_is_missing(strategy):
    done = subprocess.run([strategy, "no-such-instance", "v", "s", "1"], capture_output=True, text=True)
    assert done.returncode == 1 and "/dev/shm/feedhandler-no-such-instance/instruments" in done.stderr
