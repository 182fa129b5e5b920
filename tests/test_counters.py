"""Counters: histograms against exact quantiles, folded errors, and numbers that survive their worker."""
import ctypes
import errno
import os
import random
import re
import struct

import pytest

from csupport import ROOT
from ring_support import (I, P, TEXT, U32, U64, corrupt, function, place)  # noqa: F401

HISTOGRAM = 80 + 128 * 8
HISTOGRAM_SIZE = 32 + 2304 * 8
SESSIONS = HISTOGRAM + 5 * HISTOGRAM_SIZE
ERRORS = SESSIONS + 512 * 232
SIZE = ERRORS + 128 * 256


@pytest.fixture
def counters(place):
    descriptor = os.open(place.path, os.O_RDONLY)
    opened = []

    class Counters:
        path = place.path / "worker-2.counters"

        def create(self, worker=2):
            opened.append(function("fh_counters_create", P, I, U32, U64)(descriptor, worker, 7))
            return opened[-1]

        def open(self, worker=2):
            opened.append(function("fh_counters_open", P, I, U32)(descriptor, worker))
            return opened[-1]

    yield Counters()
    for at in opened:
        function("fh_counters_close", None, P)(at)
    os.close(descriptor)


def add(at, ns):
    function("fh_histogram_add", None, P, U64)(at + HISTOGRAM, ns)


def quantile(at, q):
    return function("fh_histogram_quantile", U64, P, ctypes.c_double)(at + HISTOGRAM, q)


def note(at, text, code=1, now=1, session=0):
    function("fh_error_add", None, P, U64, U32, U32, TEXT, ctypes.c_size_t)(at, now, code, session, text, len(text))


def errors(at):
    rows = [struct.unpack_from("<QQQII224s", ctypes.string_at(at + ERRORS + 256 * i, 256)) for i in range(128)]
    return [(first, last, count, code, session, text.rstrip(b"\0")) for first, last, count, code, session, text in rows if count]


@pytest.mark.parametrize("shape", ["uniform", "exponential", "wide", "small"])
def test_quantiles_are_within_a_bucket_of_the_exact_ones(counters, shape):
    at, chance = counters.create(), random.Random(5)
    draw = {"uniform": lambda: chance.randrange(10**6), "exponential": lambda: int(chance.expovariate(1e-5)),
            "wide": lambda: int(2 ** chance.uniform(0, 40)), "small": lambda: chance.randrange(100)}[shape]
    values = sorted(draw() for _ in range(5000))
    for value in values:
        add(at, value)
    for q in (0, 0.001, 0.25, 0.5, 0.9, 0.99, 0.999, 0.9999, 1):
        exact = values[max(0, -(-int(q * 1e6) * len(values) // 10**6) - 1)]
        assert exact <= quantile(at, q) <= exact + exact / 64, q


@pytest.mark.parametrize("value", [0, 1, 63, 64, 65, 127, 128, 129, 2**20 - 1, 2**20, 2**40, 2**41 - 2**34 - 1])
def test_bucket_holds_its_own_edge_and_not_the_next(counters, value):
    at = counters.create()
    add(at, value)
    add(at, value * 4 + 1000)  # so that the maximum does not answer for the bucket
    assert value <= quantile(at, 0.5) <= value + value // 64


@pytest.mark.parametrize("value", [2**41, 2**50, 2**64 - 1])
def test_time_beyond_the_last_bucket_is_kept_as_the_maximum(counters, value):
    at = counters.create()
    add(at, value)
    assert quantile(at, 0.5) == value


def test_empty_histogram_answers_zero_and_a_filled_one_its_extremes(counters):
    at = counters.create()
    assert quantile(at, 0.5) == 0
    for ns in (500, 20, 90_000):
        add(at, ns)
    assert struct.unpack("<QQQQ", ctypes.string_at(at + HISTOGRAM, 32)) == (3, 90_520, 90_000, 20)
    assert quantile(at, 1) == 90_000


def test_counters_go_on_when_a_successor_takes_the_file(counters):
    first = counters.create()
    add(first, 100)
    note(first, b"dns failed")
    second = counters.create()
    add(second, 100)
    assert struct.unpack("<Q", ctypes.string_at(counters.open() + HISTOGRAM, 8)) == (2,)
    assert counters.path.stat().st_size == SIZE
    assert errors(second)[0][5] == b"dns failed"


def test_absent_and_foreign_files_are_refused(counters):
    assert counters.open() is None and ctypes.get_errno() == errno.ENOENT
    counters.create()
    for offset, data in [(0, b"\1"), (8, b"\2"), (16, b"\0\0"), (24, b"\0")]:
        kept = counters.path.read_bytes()[:64]
        corrupt(counters.path, offset, data)
        assert counters.open() is None and ctypes.get_errno() == errno.EPROTO
        assert counters.create() is None and ctypes.get_errno() == errno.EPROTO
        corrupt(counters.path, 0, kept)
    os.truncate(counters.path, SIZE - 1)
    assert counters.open() is None and ctypes.get_errno() == errno.EPROTO


def test_every_counter_has_the_name_of_its_declaration():
    declared = re.search(r"#define FH_COUNTER_LIST\(X\)(.*?)\n\n", (ROOT / "cext/fh_counters.h").read_text(), re.S)[1]
    names = re.findall(r"X\((\w+)\)", declared)
    name = function("fh_counter_name", TEXT, I)
    assert [name(i).decode() for i in range(len(names))] == names
    assert name(-1) is None and name(len(names)) is None


def test_repeated_error_is_one_row_with_a_count(counters):
    at = counters.create()
    note(at, b"bad frame", code=5, now=10, session=1)
    note(at, b"bad frame", code=5, now=30, session=2)
    note(at, b"bad frame", code=6, now=31)
    note(at, b"bad frames", code=5, now=32)
    assert errors(at) == [(10, 30, 2, 5, 2, b"bad frame"), (31, 31, 1, 6, 0, b"bad frame"), (32, 32, 1, 5, 0, b"bad frames")]


def test_control_bytes_of_a_venue_never_reach_a_terminal(counters):
    at = counters.create()
    note(at, b"a\x1b[2Jb\n\x00\x7fc" + "\u009bd é€".encode())
    assert errors(at)[0][5] == "a?[2Jb???c??d é€".encode()


@pytest.mark.parametrize("size", [222, 223, 224, 1000])
def test_long_error_is_cut_at_its_room_and_not_inside_a_character(counters, size):
    at = counters.create()
    note(at, b"x" * size)
    assert errors(at)[0][5] == b"x" * min(size, 223)
    note(at, b"y" * 222 + "é".encode())
    assert errors(at)[1][5] == b"y" * 222


def test_full_table_lets_go_of_the_error_not_seen_for_longest(counters):
    at = counters.create()
    for i in range(128):
        note(at, b"error %d" % i, now=100 + i)
    note(at, b"error 0", now=900)
    note(at, b"new", now=901)
    texts = {row[5]: row[2] for row in errors(at)}
    assert len(texts) == 128 and texts[b"error 0"] == 2 and texts[b"new"] == 1 and b"error 1" not in texts
