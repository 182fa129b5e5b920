"""From the venue's socket to a strategy in another process: what is read out of the rings is what the venue sent.

    simulated venue (TLS) → start, two workers → rings → reader process → digests = the expected ones

What is expected comes from elsewhere: the documents beside the recordings, the simulator's own oracle, and one written by hand.
"""
import contextlib
import gzip
import hashlib
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
from feedhandler.verify import compare, verify

VENUES = ("binance-spot", "binance-usdm", "binance-coinm", "okx", "kraken", "deribit")
FOLDER = pathlib.Path(__file__).parent
BOOK_FIELDS = ("state", "l1_changes", "l1_sha256", "bids", "asks", "levels", "all_sha256")


PYTHON = (sys.executable, str(FOLDER / "path_reader.py"))


class Reader:
    """tests/path_reader.py, or another program that speaks as it does, on an instance."""

    def __init__(self, name, env, command=PYTHON):
        self.process = subprocess.Popen([*command, name], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

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
def running(simulated, workers=2, slots=1 << 20, channels=("trade", "quote", "book"), readers=(PYTHON,)):
    """(name, reader, …): an instance whose readers attached before its first record."""
    name = crash_support.new_name()
    path = write(simulated, name, workers, slots, channels)
    start = subprocess.Popen([sys.executable, "-m", "feedhandler", "start", "-c", path], env=simulated.env, stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT, text=True)
    readers = [Reader(name, simulated.env, command) for command in readers]
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


FRAMES = """\
in   {"stream":"abcusdt@depth@100ms","data":{"e":"depthUpdate","E":1,"s":"ABCUSDT","U":1,"u":2,"b":[["2.41","9.000"]],"a":[]}}
in   {"stream":"xyzusdt@depth@100ms","data":{"e":"depthUpdate","E":1,"s":"XYZUSDT","U":10,"u":11,"b":[["0.0510","9"]],"a":[]}}
in   {"stream":"abcusdt@trade","data":{"e":"trade","E":2,"s":"ABCUSDT","t":71,"p":"2.40","q":"1.000","T":1,"m":true}}
in   {"stream":"abcusdt@depth@100ms","data":{"e":"depthUpdate","E":3,"s":"ABCUSDT","U":3,"u":4,"b":[["2.41","1.250"]],"a":[]}}
rest https://api.binance.com/api/v3/depth?symbol=ABCUSDT&limit=1000 \
{"lastUpdateId":3,"bids":[["2.40","5.000"],["2.39","1.000"]],"asks":[["2.42","3.000"],["2.45","7.000"]]}
rest https://api.binance.com/api/v3/depth?symbol=XYZUSDT&limit=1000 {"lastUpdateId":11,"bids":[["0.0500","10"]],"asks":[]}
in   {"stream":"abcusdt@depth@100ms","data":{"e":"depthUpdate","E":4,"s":"ABCUSDT","U":5,"u":5,"b":[],"a":[["2.42","0.000"]]}}
in   {"stream":"xyzusdt@depth@100ms","data":{"e":"depthUpdate","E":4,"s":"XYZUSDT","U":12,"u":12,"b":[],"a":[["0.0607","1"]]}}
in   {"stream":"abcusdt@bookTicker","data":{"u":5,"s":"ABCUSDT","b":"2.41","B":"1.250","a":"2.45","A":"7.000"}}
in   {"stream":"abcusdt@depth@100ms","data":{"e":"depthUpdate","E":5,"s":"ABCUSDT","U":6,"u":8,\
"b":[["2.41","0.000"],["2.40","4.500"]],"a":[["2.43","1.000"]]}}
in   {"stream":"abcusdt@trade","data":{"e":"trade","E":6,"s":"ABCUSDT","t":72,"p":"2.43","q":"0.025","T":1,"m":false}}
in   {"stream":"xyzusdt@trade","data":{"e":"trade","E":6,"s":"XYZUSDT","t":9,"p":"0.0607","q":"3","T":1,"m":false}}
in   {"stream":"xyzusdt@bookTicker","data":{"u":12,"s":"XYZUSDT","b":"0.0500","B":"10","a":"0.0607","A":"1"}}
"""


def sha256(*lines):
    return hashlib.sha256("".join(f"{line}\n" for line in lines).encode()).hexdigest()


def counted(*lines):
    return {"n": len(lines), "sha256": sha256(*lines)}


def book(bids, asks, *touches):
    return {"state": "live", "bids": bids, "asks": asks, "levels": [len(bids), len(asks)], "l1_changes": len(touches),
            "l1_sha256": sha256(*touches), "all_sha256": sha256(*map(" ".join, bids), "", *map(" ".join, asks), "")}


WRITTEN_BY_HAND = {
    "books": {"ABCUSDT": book([["2.4", "4.5"], ["2.39", "1"]], [["2.43", "1"], ["2.45", "7"]],
                              "2.41 1.25 2.42 3", "2.41 1.25 2.45 7", "2.4 4.5 2.43 1"),
              "XYZUSDT": book([["0.05", "10"]], [["0.0607", "1"]], "0.05 10 - -", "0.05 10 0.0607 1")},
    "trades": {"ABCUSDT": counted("2.4 1 S", "2.43 0.025 B"), "XYZUSDT": counted("0.0607 3 B")},
    "bbo": {"ABCUSDT": counted("2.41 1.25 2.45 7"), "XYZUSDT": counted("0.05 10 0.0607 1")}}


def test_a_recording_made_by_hand_gives_what_is_written_here_by_hand(tmp_path):
    lines = [line.split(None, 1) for line in FRAMES.splitlines()]
    path = tmp_path / "by_hand.tsv.gz"
    path.write_bytes(gzip.compress("".join(
        f"{10**18 + number}\t{'http' if kind == 'rest' else 'ws1'}\t{kind}\t{text}\n" for number, (kind, text) in enumerate(lines)).encode()))
    assert compare(verify(path, "binance-spot"), WRITTEN_BY_HAND) == []
    got = play(path, "binance-spot", WRITTEN_BY_HAND, ("trade", "quote", "book@100ms"))
    assert set(got["end"]) == {"0", "1"}, "each worker had an instrument"


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
    two from the first record on, of which one in C, and one that comes late.

    An instrument stands still for 1.5 s after its REST book was served: a book that has not arrived by then takes two
    steps of the simulator's as one."""
    with folder() as place:
        simulated = crash_support.Simulated(place, venues=VENUES, instruments=34, rate=12_000, words=("--snapshot-pause", "1.5"))
        try:
            with running(simulated, readers=(PYTHON, c_strategy())) as (name, reader, strategy):
                late = Reader(name, simulated.env).attached()
                begin = stats(simulated, name)["frames"]
                crash_support.until(lambda: stats(simulated, name)["frames"] > begin + 40_000, "40,000 frames")
                oracle = settle(simulated, name)
                total = stats(simulated, name)
                yield oracle, reader.result(), late.result(), strategy.result(), total
        finally:
            simulated.close()


def c_strategy():
    return (str(csupport.build("count_trades", ["tests/c/count_trades.c"], program=True)),)


def test_204_synthetic_instruments_of_six_endpoints_are_what_the_simulator_says_it_sent(six_venues):
    oracle, got, _, _, total = six_venues
    found, compared = compare_with_oracle(got["document"], oracle)
    assert found == [] and compared > 1500
    assert got["lost"] == 0
    clean(total)


def test_a_reader_that_comes_late_has_state_and_then_the_same_records(six_venues):
    _, full, late, _, _ = six_venues
    assert late["lost"] == 0 and 0 < late["data"][0] < full["data"][0]
    shared = [(ring, number) for ring, blocks in late["blocks"].items() for number in blocks]
    assert len(shared) > 600 and {ring for ring, _ in shared} == {"0", "1"}
    for blocks in late["blocks"].values():
        assert sorted(map(int, blocks)) == list(range(min(map(int, blocks)), max(map(int, blocks)) + 1)), "none is missing"
    assert all(late["blocks"][ring][number] == full["blocks"][ring][number] for ring, number in shared)
    assert late["touches"] == full["touches"] and len(full["touches"]) == 204
    assert late["tops"] == full["tops"]
    for name, (bids, asks) in full["tops"].items():
        book = full["document"]["books"][name]
        for side, levels in ((bids, book["bids"]), (asks, book["asks"])):
            assert [[float(x) for x in level] for level in side] == [[float(x) for x in level] for level in levels]


def test_a_strategy_in_c_reads_the_same_records(six_venues):
    _, full, _, strategy, _ = six_venues
    assert strategy["lost"] == 0 and strategy["trades"][0] > 1000
    assert (strategy["data"], strategy["trades"]) == (full["data"], full["trades"])


def test_a_reader_stopped_for_two_seconds_is_told_its_loss_exactly_and_is_consistent_again():
    with folder() as place:
        simulated = crash_support.Simulated(place, venues=("deribit", "okx"), instruments=8, rate=12_000)
        try:
            with running(simulated, slots=1 << 14, readers=(PYTHON, PYTHON)) as (name, reader, stopped):
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
