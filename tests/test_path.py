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
def running(simulated, workers=2, slots=1 << 20, channels=("trade", "quote", "book")):
    """(name, reader): an instance whose first reader attached before its first record."""
    name = crash_support.new_name()
    path = write(simulated, name, workers, slots, channels)
    start = subprocess.Popen([sys.executable, "-m", "feedhandler", "start", "-c", path], env=simulated.env, stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT, text=True)
    reader = Reader(name, simulated.env)
    try:
        reader.attached()
        out, _ = start.communicate(timeout=90)
        assert start.returncode == 0, out
        yield name, reader
    finally:
        for process in (start, reader.process):
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
