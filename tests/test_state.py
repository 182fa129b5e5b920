"""State rows: the latch always leaves one intact copy; hand-over and marking after a restart."""
import ctypes
import errno
import os
import struct

import pytest

from tests.ring_support import (EMPTY, E_MALFORMED, E_RANGE, E_SYSTEM, E_UNKNOWN, I, OK, P, ROW, U32, U64, corrupt, function,
                                instance, place, place, table)  # noqa: F401

FLAG_STALE = 16
L1_FLAGS, BOOK_FLAGS = 165, 28


def put(row, position, value, levels=1):
    function("t_state_put", None, P, U64, ctypes.c_int64, U32)(row, position, value, levels)


def read(row, name, size):
    out = ctypes.create_string_buffer(size)
    return function(f"t_read_{name}", I, P, P)(row, out), out.raw


def book_of(row):
    result, raw = read(row, "book", 704)
    bid_count, ask_count = struct.unpack_from("<HH", raw, 24)
    levels = [struct.unpack_from("<qq", raw, 64 + 16 * i) for i in range(40)]
    return result, levels[:bid_count], levels[20:20 + ask_count], levels[bid_count:20] + levels[20 + ask_count:]


@pytest.fixture
def rows(instance):
    row = function("t_row", P, P, U32)
    return [row(instance.tables["state"], i) for i in range(4)]


def test_row_that_was_never_written_is_empty(rows):
    assert read(rows[0], "l1", 192)[0] == EMPTY and book_of(rows[0])[0] == EMPTY


@pytest.mark.parametrize("writes", [1, 2, 3, 10])
def test_row_holds_the_last_value_written(rows, writes):
    for value in range(writes):
        put(rows[1], position=value + 100, value=value)
    result, raw = read(rows[1], "l1", 192)
    position, _, _, _, bid_price, _, _, ask_size = struct.unpack_from("<QQQQqqqq", raw)
    assert (result, position, bid_price, ask_size) == (OK, writes + 99, writes - 1, writes - 1)


@pytest.mark.parametrize("levels", [0, 1, 19, 20, 21, 64])
def test_book_row_holds_the_best_twenty_levels_best_first(rows, levels):
    put(rows[0], 1, 1000, levels=64)
    put(rows[0], 2, 1000, levels=64)  # both copies are full now: what is left of them must not show
    put(rows[0], 3, 1000, levels)
    best = [(1000 + i, 1000) for i in reversed(range(levels))][:20]
    assert book_of(rows[0]) == (OK, best, best, [(0, 0)] * (40 - 2 * len(best)))


def test_half_written_copy_is_never_what_a_reader_gets(rows):
    put(rows[0], 1, 11)
    put(rows[0], 2, 22)
    latch = ctypes.c_uint64.from_address(rows[0] + 8).value
    spare = rows[0] + 64 + 192 * ((latch + 1) % 2)
    ctypes.memset(spare, 0xEE, 100)  # a writer killed inside its copy
    result, raw = read(rows[0], "l1", 192)
    assert result == OK and struct.unpack_from("<QQQQq", raw)[4] == 22
    put(rows[0], 3, 33)  # its successor fills the same copy again
    assert struct.unpack_from("<QQQQq", read(rows[0], "l1", 192)[1])[4] == 33


def test_only_the_resumed_workers_newer_rows_become_stale(instance, rows):
    give = function("t_give", None, P, U32)
    for row, owner, position in zip(rows, (3, 3, 3, 4), (99, 100, 101, 101)):
        give(row, owner)
        put(row, position, 5)
    mark = function("t_mark_stale", U32, P, U32, U64)
    assert mark(instance.tables["state"], 3, 100) == 4  # two rows, an L1 and a book each
    flags = [(read(row, "l1", 192)[1][L1_FLAGS], read(row, "book", 704)[1][BOOK_FLAGS]) for row in rows]
    assert flags == [(0, 0), (FLAG_STALE,) * 2, (FLAG_STALE,) * 2, (0, 0)]
    assert struct.unpack_from("<QQQQq", read(rows[1], "l1", 192)[1])[4] == 5  # the value itself stays
    assert mark(instance.tables["state"], 3, 0) == 2  # all the rest of its rows
    assert mark(instance.tables["state"], 3, 0) == 0


def test_table_is_created_once_and_opened_by_many(place):
    first, result = table(place.path, "state")
    assert result == 0
    assert table(place.path, "state")[1] == E_SYSTEM and ctypes.get_errno() == errno.EEXIST
    second, result = table(place.path, "state", create=0)
    row = function("t_row", P, P, U32)
    put(row(first, 3), 1, 77)
    assert struct.unpack_from("<QQQQq", read(row(second, 3), "l1", 192)[1])[4] == 77
    assert (place.path / "state").stat().st_mode & 0o777 == 0o640 & ~current_umask()
    for at in (first, second):
        function("t_table_close", None, P)(at)


def current_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("row_max", [0, 2**20 + 1])
def test_table_without_rows_or_with_too_many_is_refused(place, row_max):
    assert table(place.path, "state", row_max) == (None, E_RANGE)
    assert not (place.path / "state").exists()


@pytest.mark.parametrize("offset, data, result", [
    (0, b"\1", E_MALFORMED), (8, b"\2", E_UNKNOWN), (12, struct.pack("<I", 64), E_MALFORMED), (16, b"\0\0", E_UNKNOWN),
    (24, b"\1", E_MALFORMED), (48, struct.pack("<I", 1792), E_MALFORMED), (52, struct.pack("<I", 3), E_MALFORMED),
    (52, struct.pack("<I", 0), E_MALFORMED), (52, struct.pack("<I", 2**32 - 1), E_MALFORMED)])
def test_table_with_a_wrong_head_is_refused(place, offset, data, result):
    at, _ = table(place.path, "state")
    function("t_table_close", None, P)(at)
    corrupt(place.path / "state", offset, data)
    assert table(place.path, "state", create=0) == (None, result)


@pytest.mark.parametrize("change", [-4096 - 4 * ROW["state"], -1, 1])
def test_table_of_another_size_is_refused(place, change):
    at, _ = table(place.path, "state")
    function("t_table_close", None, P)(at)
    os.truncate(place.path / "state", 4096 + 4 * ROW["state"] + change)
    assert table(place.path, "state", create=0) == (None, E_MALFORMED)
