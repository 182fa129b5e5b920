"""From the venue's socket to a strategy in another process: what is read out of the rings is what the venue sent.

    simulated venue (TLS) → start, two workers → rings → reader process → digests = the expected ones
"""
import contextlib
import gzip
import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile

import pytest

import crash_support
import csupport
from feedhandler import instance

VENUES = ("binance-spot", "binance-usdm", "binance-coinm", "okx", "kraken", "deribit")
FOLDER = pathlib.Path(__file__).parent
BOOK_FIELDS = ("state", "l1_changes", "l1_sha256", "bids", "asks", "levels", "all_sha256")


class Reader:
    """tests/path_reader.py on an instance."""

    def __init__(self, name, env):
        self.process = subprocess.Popen([sys.executable, str(FOLDER / "path_reader.py"), name], env=env, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, text=True)

    def attached(self):
        assert self.process.stdout.readline() == "attached\n"
        return self

    def result(self):
        """What it read; it ends when nothing new comes."""
        out, _ = self.process.communicate(timeout=60)
        assert self.process.returncode == 0
        return json.loads(out.splitlines()[-1])


@contextlib.contextmanager
def folder():
    with tempfile.TemporaryDirectory(prefix="feedhandler-test-") as path:
        yield pathlib.Path(path)


def write(simulated, name, workers, slots, channels):
    path = simulated.write(name, workers=workers, slots=slots, channels=channels)
    text = pathlib.Path(path).read_text().replace("max = 64", "max = 512")
    pathlib.Path(path).write_text(text)
    return path


@contextlib.contextmanager
def running(simulated, workers=2, slots=1 << 20, channels=("trade", "quote", "book"), readers=1):
    """(name, reader, …): an instance whose readers attached before its first record."""
    name = crash_support.new_name()
    path = write(simulated, name, workers, slots, channels)
    start = subprocess.Popen([sys.executable, "-m", "feedhandler", "start", "-c", path], env=simulated.env, stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT, text=True)
    readers = [Reader(name, simulated.env) for _ in range(readers)]
    try:
        for reader in readers:
            reader.attached()
        out, _ = start.communicate(timeout=90)
        assert start.returncode == 0, out
        yield name, *readers
    finally:
        for process in (start, *(reader.process for reader in readers)):
            if process.poll() is None:
                process.kill()
            process.communicate()
        crash_support.verb("stop", "-n", name, env=simulated.env)
        assert not os.path.exists(instance.directory(name))


def stats(simulated, name):
    return json.loads(crash_support.verb("stats", "-n", name, "--json", env=simulated.env).stdout)["total"]


def _data_frames(total):
    return total["frames"] - total["frames_control"]


def clean(total):
    assert {key: total[key] for key in ("book_gaps", "frames_malformed", "frames_unknown", "book_checksum_bad", "duplicates", "inexact",
                                        "overflow")} == dict.fromkeys(("book_gaps", "frames_malformed", "frames_unknown",
                                                                       "book_checksum_bad", "duplicates", "inexact", "overflow"), 0)


def differences(document, expected, venue):
    """Fields of the expected document that what was read does not have."""
    found = []
    for part in ("trades", "bbo"):
        for symbol, wanted in expected[part].items():
            got = document[part].get(f"{venue} {symbol}")
            if got is None or {key: got[key] for key in ("n", "sha256")} != {key: wanted[key] for key in ("n", "sha256")}:
                found.append(f"{part} {symbol}: {got} instead of {wanted}")
    for symbol, wanted in expected["books"].items():
        got = document["books"].get(f"{venue} {symbol}", {})
        found += [f"{symbol} {field}: {got.get(field)!r} instead of {wanted[field]!r}" for field in BOOK_FIELDS
                  if field in wanted and got.get(field) != wanted[field]]
    return found


def play(path, venue, expected, channels=("trade", "quote", "book")):
    """Play a recording at full speed into two workers; a reader process must have read what was expected, lost 0."""
    with folder() as place:
        simulated = crash_support.Simulated(place, venues=(venue,), words=("--capture", str(path), "--speed", "max"))
        try:
            with running(simulated, channels=channels) as (name, reader):
                crash_support.until(lambda: simulated.ask("report")["finished"], "the recording is over", 120)
                sent = sum(capture["frames_sent"] for capture in simulated.ask("report")["captures"])
                crash_support.until(lambda: _data_frames(stats(simulated, name)) >= sent, "the workers have read it")
                got = reader.result()
                clean(stats(simulated, name))
        finally:
            simulated.close()
    assert got["lost"] == 0
    assert differences(got["document"], expected, venue) == []
    return got


@pytest.mark.parametrize("recording, venue, channels", [
    ("binance_usdm_2024.head", "binance-usdm", ("trade", "quote", "book@0ms")),
    ("binance_spot_2024.head", "binance-spot", ("trade", "quote", "book@100ms"))])
def test_a_recording_at_full_speed_is_read_out_of_the_rings_digit_for_digit(recording, venue, channels):
    captures = csupport.captures()
    if captures is None:
        pytest.skip("no recordings: set FEEDHANDLER_CAPTURES to their folder")
    expected = json.loads((captures / "expected" / f"{recording}.json").read_text())
    play(captures / f"{recording}.tsv.gz", venue, expected, channels)


def compare_with_oracle(document, oracle):
    """Fields of the simulator's own documents that what was read does not have; how many fields were compared."""
    found, compared = [], 0
    for venue, expected in oracle.items():
        for part in ("books", "trades", "bbo"):
            for symbol, wanted in expected[part].items():
                got = document[part].get(f"{venue} {symbol}", {})
                for field in wanted:
                    if field in ("n", "sha256", *BOOK_FIELDS):
                        compared += 1
                        if got.get(field) != wanted[field]:
                            found.append(f"{venue} {part} {symbol} {field}: {got.get(field)!r} instead of {wanted[field]!r}")
    return found, compared


def settle(simulated, name):
    """The market stands still and everything sent has been read by the workers."""
    simulated.ask("hold?on=1")
    before = -1
    while (now := stats(simulated, name)["frames"]) != before:   # a stats call takes longer than a frame on its way
        before = now
    return simulated.ask("oracle")


@pytest.fixture(scope="module")
def six_venues():
    """204 instruments of all six endpoints, 12,000 messages a second, two workers, and three readers:
    one from the first record on, one that comes late, one in C."""
    with folder() as place:
        simulated = crash_support.Simulated(place, venues=VENUES, instruments=34, rate=12_000, words=("--snapshot-pause", "1.5"))
        try:
            with running(simulated) as (name, reader):
                late = Reader(name, simulated.env).attached()
                strategy = subprocess.Popen([str(c_strategy()), name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
                assert strategy.stdout.readline() == "attached\n"
                begin = stats(simulated, name)["frames"]
                crash_support.until(lambda: stats(simulated, name)["frames"] > begin + 40_000, "40,000 frames")
                oracle = settle(simulated, name)
                total = stats(simulated, name)
                yield oracle, reader.result(), late.result(), json.loads(strategy.communicate(timeout=30)[0]), total
        finally:
            simulated.close()


def c_strategy():
    return csupport.build("count_trades", ["tests/c/count_trades.c"], program=True)


def test_204_synthetic_instruments_of_six_endpoints_are_what_the_simulator_says_it_sent(six_venues):
    oracle, got, _, _, total = six_venues
    found, compared = compare_with_oracle(got["document"], oracle)
    assert found == [] and compared > 1500
    assert got["lost"] == 0
    clean(total)


def test_a_reader_that_comes_late_has_state_and_then_the_same_records(six_venues):
    _, full, late, _, _ = six_venues
    assert late["lost"] == 0
    shared = [(ring, number) for ring, blocks in late["blocks"].items() for number in blocks]
    assert len(shared) > 40 and {ring for ring, _ in shared} == {"0", "1"}
    assert all(late["blocks"][ring][number] == full["blocks"][ring][number] for ring, number in shared)
    assert late["touches"] == full["touches"] and len(full["touches"]) == 204
    assert late["tops"] == full["tops"]
    for name, (bids, asks) in full["tops"].items():
        book = full["document"]["books"][name]
        for side, levels in ((bids, book["bids"]), (asks, book["asks"])):
            assert [[float(x) for x in level] for level in side] == [[float(x) for x in level] for level in levels]


def test_a_strategy_in_c_reads_the_same_trades(six_venues):
    _, _, late, strategy, _ = six_venues
    assert strategy["lost"] == 0 and strategy["trades"] > 1000
    assert strategy["records"] > 40_000


def test_a_reader_stopped_for_two_seconds_is_told_its_loss_exactly_and_is_consistent_again():
    with folder() as place:
        simulated = crash_support.Simulated(place, venues=("deribit", "okx"), instruments=8, rate=12_000)
        try:
            with running(simulated, slots=1 << 14, readers=2) as (name, reader, stopped):
                os.kill(stopped.process.pid, signal.SIGSTOP)
                begin = stats(simulated, name)["frames"]
                crash_support.until(lambda: stats(simulated, name)["frames"] > begin + 24_000, "two seconds of data")
                os.kill(stopped.process.pid, signal.SIGCONT)
                begin = stats(simulated, name)["frames"]
                crash_support.until(lambda: stats(simulated, name)["frames"] > begin + 12_000, "a second of data")
                oracle = settle(simulated, name)
                full, told = reader.result(), stopped.result()
        finally:
            simulated.close()
    assert full["lost"] == 0 and compare_with_oracle(full["document"], oracle)[0] == [], "another reader is not disturbed"
    assert told["lost"] > 10_000
    assert told["records"] + told["lost"] + told["skipped"] == sum(told["end"].values()), "received, lost and skipped are all there was"
    assert told["touches"] == full["touches"] and told["tops"] == full["tops"]
    assert all(total == full["blocks"][ring][number] for ring, blocks in told["blocks"].items() for number, total in blocks.items())
