"""The ring's writer and readers: what is written is read once, whole and in order, through laps, deaths and moves."""
import errno
import os
import random
import signal
import struct
import subprocess
import time
from pathlib import Path

import pytest

from tests.ring_support import (ABSENT, BAD, CHANGED, EMPTY, EPOCH, E_MALFORMED, E_RANGE, E_SYSTEM, E_UNKNOWN, I, LAPPED, LAST,
                                MOVED_IN, OK, SLOTS, SMALL, STATUS, TRADE, Writer, corrupt, numbers, place, program)  # noqa: F401


# One record, one event, in order


@pytest.mark.parametrize("how", ["poll", "batch"])
@pytest.mark.parametrize("in_place", [False, True])
def test_reader_gets_every_word_that_was_put(place, how, in_place):
    writer, reader = place.writer(), place.reader()
    writer._put(in_place, 0xFFFFFFFE, TRADE, LAST | 8, -1, 2**63 - 1, -(2**63), 4)
    writer.flush()
    result, records, lost = getattr(reader, how)()
    assert (result, lost) == (OK, 0)
    assert records == [(1, 0, 0, 0xFFFFFFFE, TRADE, 9, 0, -1, 2**63 - 1, -(2**63), 4)]
    assert getattr(reader, how)() == (EMPTY, [], 0)


@pytest.mark.parametrize("how", ["poll", "batch"])
def test_records_stay_in_order_over_many_laps(place, how):
    writer, reader = place.writer(), place.reader()
    seen = []
    for turn in range(40):
        for i in range(101):
            writer.put(turn * 101 + i)
        writer.flush()
        result, records, lost = getattr(reader, how)()
        assert (result, lost) == (OK, 0)
        seen += numbers(records)
    assert seen == list(range(40 * 101))


def test_batch_sees_an_event_at_its_flush_and_a_poll_at_its_last_record(place):
    writer, tip, batch = place.writer(), place.reader(), place.reader()
    writer.put(1, flags=0)
    assert tip.poll()[0] == EMPTY
    writer.put(2, flags=LAST)
    assert numbers(tip.poll()[1]) == [1, 2]
    assert batch.batch()[0] == EMPTY
    writer.flush()
    assert numbers(batch.batch()[1]) == [1, 2]


def test_poll_never_splits_an_event_and_says_when_it_does_not_fit(place):
    writer, reader = place.writer(), place.reader()
    for number, flags in [(1, LAST), (2, 0), (3, 0), (4, LAST)]:
        writer.put(number, flags=flags)
    assert numbers(reader.poll(3)[1]) == [1]
    assert reader.poll(2)[0] == SMALL
    assert numbers(reader.poll(3)[1]) == [2, 3, 4]


def test_reader_starts_at_what_is_new(place):
    writer = place.writer()
    writer.many(5000)
    reader = place.reader()
    assert reader.batch()[0] == EMPTY
    writer.many(1)
    assert numbers(reader.batch()[1]) == [5000]


# Laps


@pytest.mark.parametrize("how", ["poll", "batch"])
def test_reader_keeps_the_last_960_of_1024_slots_and_one_more_laps_it(place, how):
    writer, reader, late = place.writer(), place.reader(), place.reader()
    writer.many(SLOTS)
    assert numbers(reader.poll()[1] if how == "poll" else reader.batch()[1]) == list(range(SLOTS))
    writer.many(1)  # claims the block of 64 in which the slot of position 0 lies
    result, records, lost = getattr(late, how)()
    assert (result, records) == (LAPPED, [])
    assert lost == SLOTS + 64 - SLOTS + SLOTS // 4 == late.numbers()[0]
    assert numbers(getattr(late, how)()[1]) == list(range(lost, SLOTS + 1))


@pytest.mark.parametrize("how", ["poll", "batch"])
def test_slow_reader_is_told_how_many_records_it_lost(place, how):
    writer, reader = place.writer(), place.reader()
    chance = random.Random(3)
    seen, lost_total = 0, 0
    for _ in range(300):
        writer.many(chance.choice([1, 10, 500, 3000]))
        result, records, lost = getattr(reader, how)()
        lost_total += lost
        if records:
            assert numbers(records) == list(range(seen + lost_total, seen + lost_total + len(records)))
        seen += len(records)
    while (answer := getattr(reader, how)())[0] != EMPTY:
        seen += len(answer[1])
        lost_total += answer[2]
    assert seen + lost_total == writer.position and lost_total > 0


def test_reader_lapped_into_an_event_skips_to_its_end_and_counts_that_too(place):
    writer, reader = place.writer(), place.reader()
    for i in range(SLOTS + 64):
        writer.put(i, flags=LAST if i % 100 == 99 else 0)
    writer.flush()
    result, _, lost = reader.batch()
    assert (result, lost) == (LAPPED, 400)  # resumes at 320, inside the event that ends at 399
    assert numbers(reader.batch()[1])[0] == 400


def test_reader_that_is_overtaken_while_it_uses_a_span_is_told(place):
    writer, reader = place.writer(), place.reader()
    writer.many(10)
    result, records, _ = reader.batch(advance=False)
    assert result == OK
    writer.many(SLOTS - 10)
    assert reader.advance(0)  # claim stands at 1,024: position 0 is still intact
    writer.many(1)
    assert not reader.advance(10)
    assert reader.batch()[0] == LAPPED


# Death and succession


def test_successor_resumes_at_the_first_uncommitted_position(place):
    writer, reader = place.writer(), place.reader()
    writer.many(100)
    writer.put(100)
    writer.torn()
    writer.die()
    heir = place.writer(resume=True)
    assert heir.result == 0 and heir.position == 102
    heir.put(102)
    heir.flush()
    result, records, lost = reader.poll()
    assert numbers(records[:101]) == list(range(101))
    assert records[101][4] == STATUS and records[101][7:9] == (EPOCH, 2)
    assert numbers(records[102:]) == [102]


@pytest.mark.parametrize("how", ["poll", "batch"])
def test_event_whose_writer_died_inside_it_is_never_delivered(place, how):
    writer, reader = place.writer(), place.reader()
    writer.many(3)
    writer.put(3, flags=0)
    writer.put(4, flags=0)
    writer.die()
    heir = place.writer(resume=True)
    heir.put(6)
    heir.flush()
    records = []
    while (answer := getattr(reader, how)())[0] == OK:
        records += answer[1]
    assert [record[4] for record in records] == [TRADE] * 3 + [STATUS, TRADE]
    assert numbers(records) == [0, 1, 2, EPOCH, 6]
    assert reader.numbers() == (7, 0, 2)


def test_reader_that_waits_inside_an_event_drops_it_at_epoch(place):
    writer, reader = place.writer(), place.reader()
    writer.put(0, flags=0)
    assert reader.poll()[0] == EMPTY
    writer.die()
    place.writer(resume=True)
    result, records, _ = reader.poll()
    assert (result, numbers(records)) == (OK, [EPOCH])


def test_second_writer_is_refused_while_the_first_lives(place):
    writer = place.writer()
    second = place.writer(resume=True)
    assert (second.result, second.errno) == (E_SYSTEM, errno.EWOULDBLOCK)
    assert place.writer().result == E_SYSTEM  # the file exists
    writer.close()
    assert place.writer(resume=True).result == 0


def test_every_epoch_is_one_higher(place):
    place.writer().die()
    reader = place.reader()
    for epoch in range(2, 6):
        place.writer(resume=True).die()
        assert reader.batch()[1][0][7:9] == (EPOCH, epoch)


@pytest.mark.parametrize("code", [CHANGED, MOVED_IN, EPOCH])
def test_span_never_jumps_over_a_record_that_changes_its_meaning(place, code):
    writer, reader = place.writer(), place.reader()
    writer.many(3)
    writer.status(code, a=9)
    writer.many(2)
    assert numbers(reader.batch()[1]) == [0, 1, 2]
    assert numbers(reader.batch()[1]) == [code, 4, 5]


@pytest.mark.parametrize("slots", [0, 512, 1023, 1025, 2**27])
def test_slot_count_that_is_no_power_of_two_in_range_is_refused(place, slots):
    assert place.writer(slots=slots).result == E_RANGE
    assert list(place.path.iterdir()) == []


def test_worker_above_255_is_refused(place):
    assert place.writer(worker=255).result == 0
    assert place.writer(worker=256).result == E_RANGE
    assert place.writer(worker=256, resume=True).result == E_RANGE


def test_link_in_place_of_a_ring_is_not_followed(place, tmp_path):
    (place.path / "worker-0.ring").symlink_to(tmp_path / "elsewhere")
    assert place.writer().result == E_SYSTEM
    assert not (tmp_path / "elsewhere").exists()


def test_killed_writer_leaves_whole_records_and_its_heir_loses_none(place):
    """What: a process writes events of 1 to 5 records, is killed at a random moment and succeeded, 30 times.
    Why: a death may fall between any two stores. Sizes: 4,096 slots, up to 4 ms of writing each time.
    A failure means a torn record, a half event, a repeated or a missing position."""
    path = program("killed_writer.c")
    chance = random.Random(11)
    reader = None
    position = epochs = 0
    for turn in range(30):
        child = subprocess.Popen([path, str(place.path)], stdout=subprocess.PIPE)
        assert child.stdout.read(1) == b"+"  # it owns the ring and writes
        if reader is None:
            reader = place.reader(max_count=8192)
        os.sched_yield()
        time.sleep(chance.random() * 0.004)  # the random moment itself, nothing is awaited
        child.send_signal(signal.SIGKILL)
        child.wait()
        child.stdout.close()
        while (answer := reader.poll())[0] in (OK, LAPPED):
            for commit, recv, _, instrument, kind, flags, _, a, b, c, d in answer[1]:
                if kind == STATUS:
                    epochs += 1
                    continue
                assert a == b == c == d == commit - 1 == recv
            for before, after in zip(answer[1], answer[1][1:]):
                # instrument is the record's place in its event
                assert after[3] == before[3] + 1 if not before[5] & LAST else after[3] == 0 or after[4] == STATUS
            assert answer[0] == LAPPED or answer[1][-1][5] & LAST
    assert epochs >= 1 or reader.numbers()[1] > 0
    heir = place.writer(resume=True)
    assert heir.result == 0
    assert reader.poll()[0] == OK


# Files that are not what they say


@pytest.mark.parametrize("offset, data, says", [
    (0, b"\0", "not a file of this kind"),
    (8, struct.pack("<I", 2), "another layout"),
    (16, b"\xff", "another layout"),
    (12, struct.pack("<I", 8192), "size"),
    (24, struct.pack("<Q", 1), "size"),
    (56, struct.pack("<Q", 2048), "slot count"),
    (56, struct.pack("<Q", 0), "slot count"),
    (56, struct.pack("<Q", 2**60), "slot count"),
    (56, struct.pack("<Q", 1000), "slot count"),
])
def test_ring_with_a_wrong_head_is_refused_with_one_sentence(place, offset, data, says):
    place.writer().die()
    corrupt(place.path / "worker-0.ring", offset, data)
    reader = place.reader()
    assert reader.result == BAD and says in reader.error and "worker-0.ring" in reader.error
    assert place.writer(resume=True).result in (E_MALFORMED, E_UNKNOWN)


@pytest.mark.parametrize("size", [0, 55, 56, 4095, 4096, 4096 + 1024 * 64 - 1, 4096 + 1024 * 64 + 1])
def test_ring_of_another_size_is_refused(place, size):
    place.writer().die()
    os.truncate(place.path / "worker-0.ring", size)
    assert place.reader().result == BAD
    assert place.writer(resume=True).result == E_MALFORMED


def test_every_bit_of_the_head_may_flip_without_a_crash(place):
    place.writer().die()
    path = place.path / "worker-0.ring"
    whole = path.read_bytes()
    for bit in range(8 * 136):
        corrupt(path, bit // 8, bytes([whole[bit // 8] ^ 1 << bit % 8]))
        reader = place.reader()
        assert reader.result in (OK, BAD)
        if reader.result == OK:
            reader.batch()
            reader.poll()
        reader.close()
        heir = Writer(place.path, resume=True)
        if heir.at:
            heir.die()
        corrupt(path, 0, whole[:4096])
        os.truncate(path, len(whole))


@pytest.mark.parametrize("offset", [256, 384], ids=["claim", "head"])
@pytest.mark.parametrize("value", [2**64 - 1, 2**63, 2**40 + 1, 1024 * 3])
def test_counter_that_lies_makes_neither_reader_nor_successor_leave_the_ring(place, offset, value):
    writer, reader = place.writer(), place.reader()
    writer.many(10)
    writer.die()
    corrupt(place.path / "worker-0.ring", offset, struct.pack("<Q", value))
    for how in (reader.batch, reader.poll):
        assert how()[0] in (OK, EMPTY, LAPPED)
    assert place.writer(resume=True).result in (0, E_MALFORMED)


def test_absent_ring_and_a_directory_in_its_place_are_told_apart(place):
    assert place.reader().result == ABSENT
    (place.path / "worker-0.ring").mkdir()
    try:
        assert place.reader().result == BAD
    finally:
        (place.path / "worker-0.ring").rmdir()


def test_full_shared_memory_is_an_error_and_leaves_no_file(tmp_path):
    path = program("small_tmpfs.c")
    done = subprocess.run([path, tmp_path], capture_output=True, text=True)
    if done.returncode == 77:
        pytest.skip(f"no private mount namespace here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr


# Threads


@pytest.mark.parametrize("sanitizer", ["thread", "address,undefined"])
def test_tiny_ring_under_torture_is_clean(tmp_path, sanitizer):
    """What: one writer, three readers (tip, span, state), a ring of 1,024 slots, all words checked.
    Why: TSan sees every unordered access. Sizes: 300,000 records, laps on purpose.
    A failure means a race, a torn record or a wrong lost count."""
    path = program("torture.c", f"-fsanitize={sanitizer}", "-O1", "-fno-sanitize-recover=all", compiler="clang")
    directory = Path(f"/dev/shm/test-{os.getpid()}-torture")
    directory.mkdir()
    try:
        done = subprocess.run([path, directory, "300000"], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
    finally:
        for file in directory.iterdir():
            file.unlink()
        directory.rmdir()
