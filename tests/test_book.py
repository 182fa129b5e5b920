"""Level rows (fh_batch), price-level books and their checksums (fh_book): bytes in, levels out."""
import ctypes
import decimal
import gzip
import itertools
import json
import random
import zlib

import pytest
from hypothesis import given, settings, strategies as st

import csupport
from test_decimal import expected
from test_json import PROBES, SOURCES

BID, ASK = 1, 2
INEXACT, OVERFLOW, UNDEFINED, INT64_MAX = 32, 64, -2**63, 2**63 - 1
OK, MALFORMED, FULL, DIGITS, MISSING, RANGE = 0, -1, -4, -5, -6, -7
CUT = 64


class Change(ctypes.Structure):
    _fields_ = [("price", ctypes.c_int64), ("size", ctypes.c_int64), ("order_count", ctypes.c_uint32), ("side", ctypes.c_uint8),
                ("price_digits", ctypes.c_int8), ("size_digits", ctypes.c_int8), ("flags", ctypes.c_uint8)]


class Level(ctypes.Structure):
    _fields_ = [("price", ctypes.c_int64), ("size", ctypes.c_int64)]


class Side(ctypes.Structure):
    _fields_ = [("level", ctypes.POINTER(Level)), ("count", ctypes.c_uint32), ("max", ctypes.c_uint32)]


class BookStruct(ctypes.Structure):
    _fields_ = [("bid", Side), ("ask", Side), ("levels_refused", ctypes.c_uint64), ("deletes_absent", ctypes.c_uint64)]


def library(name):
    c = csupport.load("core", SOURCES, PROBES[name])
    c.fh_book_set.argtypes = [ctypes.c_void_p, ctypes.c_uint8, ctypes.c_int64, ctypes.c_int64]
    c.fh_book_rescale.restype = ctypes.c_bool
    c.fh_book_crc_kraken.restype = c.fh_book_crc_okx.restype = c.fh_crc32.restype = ctypes.c_uint32
    return c


@pytest.fixture(scope="module", params=PROBES)
def c(request):
    return library(request.param)


@pytest.fixture(scope="module")
def c_one():
    return library("sse2")


# -- level rows --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guard():
    made = csupport.Guard(1 << 20)
    yield made
    made.close()


def levels(c, guard, text, skip=0, count_index=0, names=None, room=1000, padding=b'["1","2"],' * 6):
    """(answer, [(price, price digits, size, size digits, order count)])."""
    changes, count = (Change * max(room, 1))(), ctypes.c_uint32(room)
    answer = c.probe_levels(ctypes.c_void_p(guard.place(text, padding)), ctypes.c_size_t(len(text)), skip, count_index,
                            *(names or (None, None)), changes, ctypes.byref(count))
    assert all(change.side == BID for change in changes[:count.value])
    return answer, [(x.price, x.price_digits, x.size, x.size_digits, x.order_count) for x in changes[:count.value]]


KRAKEN = (b"price", b"qty")
SHAPES = [
    (b'[["61737.63000000","0.00000000"],["61730.17","0.5"]]', {}, [(6173763000000, 8, 0, 8, 0), (6173017, 2, 5, 1, 0)]),
    (b'[["8476.98","415","0","13"],["8475","0","0","0"]]', {"count_index": 3}, [(847698, 2, 415, 0, 13), (8475, 0, 0, 0, 0)]),
    (b'[["8476.98","415","0","13"]]', {}, [(847698, 2, 415, 0, 0)]),
    (b'[["new",228.51,0.22],["delete",1.0,0.0],["change",2.2e3,1e-2]]', {"skip": 1}, [(22851, 2, 22, 2, 0), (10, 1, 0, 1, 0), (2200, 0, 1, 2, 0)]),
    (b'[[1.5,2],[-3,4.0]]', {}, [(15, 1, 2, 0, 0), (-3, 0, 40, 1, 0)]),
    (b'[]', {}, []), (b' [ ] ', {}, []),
    (b'[ [ "1.5" , "2" ] , ["3","4"] ]', {}, [(15, 1, 2, 0, 0), (3, 0, 4, 0, 0)]),
    (b'[["1","2",{"a":[1]},"x"]]', {"count_index": 9}, [(1, 0, 2, 0, 0)]),
    (b'[{"price":78871.5,"qty":0.01266503},{"qty":0.00000000,"price":78871,"new":[1]}]', {"names": KRAKEN}, [(788715, 1, 1266503, 8, 0), (78871, 0, 0, 8, 0)]),
    (b'[{"price":"1","qty":"2"}]', {"names": KRAKEN}, [(1, 0, 2, 0, 0)]), (b'[]', {"names": KRAKEN}, []),
]
WRONG_ROWS = [
    (b'[["1"]]', {}, MISSING), (b'[[]]', {}, MISSING), (b'[["1","2"],["3"]]', {}, MISSING), (b'[["a",1]]', {"skip": 1}, MISSING), (b'[[]]', {"skip": 1}, MISSING),
    (b'[["1","x"]]', {}, MALFORMED), (b'[["","2"]]', {}, MALFORMED), (b'[["01","2"]]', {}, MALFORMED), (b'[[null,"2"]]', {}, MALFORMED),
    (b'[["1","2",]]', {}, MALFORMED), (b'[["1","2"]', {}, MALFORMED), (b'[["1","2"],]', {}, MALFORMED), (b'[["1" "2"]]', {}, MALFORMED),
    (b'[["1","2"]["3","4"]]', {}, MALFORMED), (b'[["1","2"],"3"]', {}, MALFORMED), (b'{"a":1}', {}, MALFORMED), (b'null', {}, MALFORMED), (b'[["1","2"]]]', {}, MALFORMED),
    (b'[["1","2",tru]]', {}, MALFORMED), (b'[["1","2","\x01"]]', {}, MALFORMED), (b'[["1,"2"]]', {}, MALFORMED), (b'[["1","2]]', {}, MALFORMED),
    (b'[["1","-2"]]', {}, RANGE), (b'[["1","2","0","4294967296"]]', {"count_index": 3}, RANGE), (b'[["1","2","0","1.5"]]', {"count_index": 3}, RANGE),
    (b'[{"price":1}]', {"names": KRAKEN}, MISSING), (b'[{"qty":1}]', {"names": KRAKEN}, MISSING), (b'[{}]', {"names": KRAKEN}, MISSING),
    (b'[{"price":1,"price":2,"qty":1}]', {"names": KRAKEN}, MALFORMED), (b'[{"price":1,"qty":1,"qty":1}]', {"names": KRAKEN}, MALFORMED),
    (b'[{"prices":1,"qty":1}]', {"names": KRAKEN}, MISSING), (b'[{"pric":1,"qty":1}]', {"names": KRAKEN}, MISSING), (b'[{"p\\u0072ice":1,"qty":1}]', {"names": KRAKEN}, MISSING),
    (b'[{"price":1,"qty":-1}]', {"names": KRAKEN}, RANGE), (b'[["1","2"]]', {"names": KRAKEN}, MALFORMED), (b'[{"price":1,"qty":1,}]', {"names": KRAKEN}, MALFORMED),
]


def test_every_shape_of_row_becomes_raw_changes(c, guard):
    for text, options, rows in SHAPES:
        assert levels(c, guard, text, **options) == (OK, rows), text


def test_a_wrong_row_is_an_error_the_cursor_keeps(c, guard):
    for text, options, error in WRONG_ROWS:
        assert levels(c, guard, text, **options)[0] == error, text


def test_rows_cut_at_any_byte_are_an_error_though_their_rest_lies_behind(c, guard):
    for text, options, _ in SHAPES:
        text = text.strip()
        for size in range(len(text)):
            assert levels(c, guard, text[:size], padding=text[size:] + text, **options)[0] < 0, text[:size]


def test_more_rows_than_there_is_room_for_are_refused_and_as_many_as_fit_are_not(c, guard):
    for row, options in ((b'["1","2"]', {}), (b'["1","2","0","3"]', {"count_index": 3}), (b'{"price":1,"qty":2}', {"names": KRAKEN})):
        text = b"[" + b",".join([row] * 50) + b"]"
        assert levels(c, guard, text, room=50, **options)[0] == OK
        for room in (0, 1, 49):
            answer, rows = levels(c, guard, text, room=room, **options)
            assert (answer, len(rows)) == (FULL, room)


decimals_text = st.one_of(st.decimals(0, 10**6, places=2), st.decimals(0, 10**9, places=8), st.integers(0, 10**12), st.decimals(0, 1, places=18))


@given(rows=st.lists(st.tuples(decimals_text, decimals_text, st.integers(0, 2**32 - 1)), max_size=12), quote=st.booleans(), gap=st.sampled_from(["", "", " "]))
@settings(max_examples=300, deadline=None)
def test_generated_rows_are_the_decimals_they_were_written_from(c_one, guard, rows, quote, gap):
    mark = '"' if quote else ""
    text = "[" + ",".join(f'{gap}[{mark}{p:f}{mark},{gap}{mark}{s:f}{mark},"0",{mark}{n}{mark}{gap}]' for p, s, n in rows) + "]"
    answer, got = levels(c_one, guard, text.encode(), count_index=3)
    assert answer == OK
    assert got == [(*expected(f"{p:f}")[:2], *expected(f"{s:f}")[:2], n) for p, s, n in rows]


# -- scaling -----------------------------------------------------------------------------------------------------


def scale(c, guard, text, price_exponent, size_exponent, accept=False):
    """Rows through fh_batch_levels() and fh_batch_scale(): (answer, [(price, size, flags)], wanted)."""
    changes, count, wanted = (Change * 100)(), ctypes.c_uint32(100), (ctypes.c_int64 * 3)()
    assert c.probe_levels(ctypes.c_void_p(guard.place(text)), ctypes.c_size_t(len(text)), 0, 0, None, None, changes, ctypes.byref(count)) == OK
    answer = c.probe_scale(changes, count, price_exponent, size_exponent, int(accept), wanted)
    if answer == OK:
        again = c.probe_scale(changes, count, price_exponent, size_exponent, int(accept), wanted)
        assert again == OK and all(change.price_digits == -price_exponent for change in changes[:count.value])
    return answer, [(x.price, x.size, x.flags) for x in changes[:count.value]], list(wanted)


def test_changes_come_to_the_exponents_of_their_instrument(c, guard):
    text = b'[["61737.63000000","0.00000000"],["5e-1","2"],["-1.10","0.001"]]'
    assert scale(c, guard, text, -2, -3)[:2] == (OK, [(6173763, 0, 0), (50, 2000, 0), (-110, 1, 0)])
    assert scale(c, guard, text, -8, -8)[:2] == (OK, [(6173763000000, 0, 0), (50000000, 200000000, 0), (-110000000, 100000, 0)])


def test_missing_digits_are_asked_for_once_for_the_whole_message(c, guard):
    text = b'[["1.234","5"],["1.2","0.00001"],["1.2345","0.1"]]'
    answer, _, wanted = scale(c, guard, text, -2, -1)
    assert (answer, wanted) == (DIGITS, [7, 4, 5])
    assert scale(c, guard, text, -wanted[1], -wanted[2])[0] == OK
    assert scale(c, guard, b'[["1.23","0.001"]]', -2, -2)[2] == [7, 2, 3]
    assert scale(c, guard, b'[["1.234","0.01"]]', -2, -2)[2] == [7, 3, 2]


def test_accepted_inexact_changes_are_rounded_and_flagged_each_on_its_own(c, guard):
    assert scale(c, guard, b'[["1.234","5"],["1.25","0.06"],["1.2","1"]]', -1, -1, accept=True)[:2] == (OK, [(12, 50, INEXACT), (12, 1, INEXACT), (12, 10, 0)])


def test_what_no_exponent_can_hold_is_flagged_and_not_asked_for(c, guard):
    for text, row in ((b'[["99999999999.000","1"]]', (UNDEFINED, 10**8, OVERFLOW)), (b'[["1","1e999"]]', (10**8, UNDEFINED, OVERFLOW)),
                      (b'[["1e-20","1"]]', (0, 10**8, INEXACT)), (b'[["1","0.12345678901234567891234"]]', (10**8, 12345679, INEXACT))):
        assert scale(c, guard, text, -8, -8)[:2] == (OK, [row]), text


def test_what_was_flagged_while_parsing_stays_flagged_though_its_digits_are_those_of_the_row(c, guard):
    assert scale(c, guard, b'[["1e999","1"],["1","1e999"]]', 0, 0)[:2] == (OK, [(UNDEFINED, 1, OVERFLOW), (1, UNDEFINED, OVERFLOW)])
    cut, kept = "12345678901234567.891", 1234567890123456789
    assert scale(c, guard, f'[["{cut}","1"],["1","{cut}"]]'.encode(), -2, -2)[:2] == (OK, [(kept, 100, INEXACT), (100, kept, INEXACT)])


def test_one_number_is_scaled_as_a_change_is(c):
    def one(text, is_size=0, accept=0):
        out = (ctypes.c_int64 * 5)()
        return c.probe_scale_one(text, ctypes.c_size_t(len(text)), is_size, -2, -3, accept, out), list(out)
    assert one(b"1.5")[1][:2] == [150, 0] and one(b"1.5", 1)[1][:2] == [1500, 0]
    assert one(b"1.555")[0] == DIGITS and one(b"1.555")[1][2:] == [7, 3, 3]
    assert one(b"1.5555", 1)[0] == DIGITS and one(b"1.5555", 1)[1][2:] == [7, 2, 4]
    assert one(b"1.555", 0, 1) == (OK, [156, INEXACT, 0, 0, 0])
    assert one(b"1e18")[1][:2] == [UNDEFINED, OVERFLOW] and one(b"1e-19")[1][:2] == [0, INEXACT]


def test_a_batch_is_bounded_and_rolls_back(c):
    assert c.probe_batch_bounds() == 0


# -- the book ----------------------------------------------------------------------------------------------------


class Book:
    def __init__(self, c, level_max):
        self.c, self.at = c, BookStruct()
        assert c.fh_book_init(ctypes.byref(self.at), ctypes.c_uint32(level_max)) == OK

    def set(self, side, price, size):
        return self.c.fh_book_set(ctypes.byref(self.at), side, price, size)

    def best_first(self, side):
        array = self.at.bid if side == BID else self.at.ask
        return [(level.price, level.size) for level in array.level[:array.count]][::-1]

    def __del__(self):
        self.c.fh_book_free(ctypes.byref(self.at))


class Oracle:
    """The same book as two dicts."""

    def __init__(self, level_max):
        self.max, self.sides, self.refused, self.absent = level_max, {BID: {}, ASK: {}}, 0, 0

    def order(self, side):
        return sorted(self.sides[side], reverse=side == BID)

    def set(self, side, price, size):
        levels = self.sides[side]
        before = self.order(side)
        if size == 0:
            if price not in levels:
                self.absent += 1
                return -1
            del levels[price]
            return before.index(price)
        changed = levels.get(price) != size
        if price not in levels and len(levels) == self.max:
            self.refused += 1
            worst = before[-1]
            if (price < worst) if side == BID else (price > worst):
                return -1
            del levels[worst]
        levels[price] = size
        return self.order(side).index(price) if changed else -1


operations = st.lists(st.tuples(st.sampled_from([BID, ASK]), st.integers(-40, 40), st.sampled_from([0, 0, 1, 2, 3])), max_size=300)


@given(operations=operations, level_max=st.sampled_from([1, 2, 7, 30, 100]))
@settings(max_examples=150, deadline=None)
def test_a_book_is_what_a_dict_says(c_one, operations, level_max):
    book, oracle = Book(c_one, level_max), Oracle(level_max)
    for operation in operations:
        assert book.set(*operation) == oracle.set(*operation)
        side = operation[0]
        assert book.best_first(side) == [(price, oracle.sides[side][price]) for price in oracle.order(side)]
    assert (book.at.levels_refused, book.at.deletes_absent) == (oracle.refused, oracle.absent)


def test_a_deep_book_is_what_a_dict_says(c_one):
    source, book, oracle = random.Random(31), Book(c_one, 700), Oracle(700)
    for _ in range(4000):
        side = source.choice([BID, ASK])
        price = int(source.gauss(0, 600)) * 10**15
        operation = (side, price, source.choice([0, 1, 2, INT64_MAX]))
        assert book.set(*operation) == oracle.set(*operation)
    for side in (BID, ASK):
        assert book.best_first(side) == [(price, oracle.sides[side][price]) for price in oracle.order(side)]
    assert oracle.refused > 0 and book.at.levels_refused == oracle.refused


def test_prices_at_the_edges_of_int64_keep_their_order(c_one):
    book = Book(c_one, 10)
    prices = [-INT64_MAX, -1, 0, 1, INT64_MAX]
    for side, best_first in ((BID, prices[::-1]), (ASK, prices)):
        for price in random.Random(3).sample(prices, 5):
            book.set(side, price, 1)
        assert [price for price, _ in book.best_first(side)] == best_first


def test_an_undefined_price_is_refused_and_an_undefined_size_kept(c_one):
    book = Book(c_one, 10)
    assert book.set(BID, UNDEFINED, 1) == -1 and book.at.levels_refused == 1 and book.best_first(BID) == []
    assert book.set(BID, 5, UNDEFINED) == 0 and book.best_first(BID) == [(5, UNDEFINED)]


def test_a_deletion_of_an_absent_price_is_counted_and_changes_nothing(c_one):
    book = Book(c_one, 10)
    assert [book.set(ASK, 5, 0), book.set(ASK, 5, 1), book.set(ASK, 5, 0), book.set(ASK, 5, 0)] == [-1, 0, 0, -1]
    assert book.at.deletes_absent == 2


def test_truncation_keeps_the_best_of_each_side(c_one):
    book = Book(c_one, 50)
    for price in range(1, 21):
        book.set(BID, price, price)
        book.set(ASK, 100 + price, price)
    c_one.fh_book_truncate(ctypes.byref(book.at), 30)
    assert book.at.bid.count == book.at.ask.count == 20
    c_one.fh_book_truncate(ctypes.byref(book.at), 3)
    assert book.best_first(BID) == [(20, 20), (19, 19), (18, 18)] and book.best_first(ASK) == [(101, 1), (102, 2), (103, 3)]
    c_one.fh_book_truncate(ctypes.byref(book.at), 0)
    assert book.best_first(BID) == book.best_first(ASK) == []


def test_a_rescaled_book_has_the_same_values_or_is_left_alone(c_one):
    book = Book(c_one, 10)
    for side, price, size in ((BID, -3, 7), (BID, 12, UNDEFINED), (ASK, 922337203685477580, 1)):
        book.set(side, price, size)
    before = [book.best_first(BID), book.best_first(ASK)]
    for powers in ((2, 0), (0, 19), (-1, 0), (19, 0), (0, -1)):
        assert not c_one.fh_book_rescale(ctypes.byref(book.at), *powers)
        assert [book.best_first(BID), book.best_first(ASK)] == before
    assert c_one.fh_book_rescale(ctypes.byref(book.at), 1, 2)
    assert book.best_first(BID) == [(120, UNDEFINED), (-30, 700)] and book.best_first(ASK) == [(9223372036854775800, 100)]
    assert not c_one.fh_book_rescale(ctypes.byref(book.at), 0, 18)
    book.set(ASK, 9223372036854775800, 0)
    assert c_one.fh_book_rescale(ctypes.byref(book.at), 0, 16) and book.best_first(BID)[1] == (-30, 7 * 10**18)


# -- checksums ---------------------------------------------------------------------------------------------------


def test_crc32_is_that_of_zlib(c_one):
    source = random.Random(9)
    for size in list(range(40)) + [1000]:
        text = source.randbytes(size)
        assert c_one.fh_crc32(text, ctypes.c_size_t(size)) == zlib.crc32(text)


def mantissa(text, digits):
    return int(decimal.Decimal(text).scaleb(digits))


def test_kraken_documented_checksum(c_one):
    asks = ("45285.2:0.00100000 45286.4:1.54571953 45286.6:1.54571109 45289.6:1.54560911 45290.2:0.15890660 45291.8:1.54553491 "
            "45294.7:0.04454749 45296.1:0.35380000 45297.5:0.09945542 45299.5:0.18772827")
    bids = ("45283.5:0.10000000 45283.4:1.54582015 45282.1:0.10000000 45281.0:0.10000000 45280.3:1.54592586 45279.0:0.07990000 "
            "45277.6:0.03310103 45277.5:0.30000000 45277.3:1.54602737 45276.6:0.15445238")
    book = Book(c_one, 20)
    for side, rows in ((BID, bids), (ASK, asks)):
        for row in rows.split():
            price, size = row.split(":")
            book.set(side, mantissa(price, 1), mantissa(size, 8))
    assert c_one.fh_book_crc_kraken(ctypes.byref(book.at), 0, 0) == 3310070434
    book.set(ASK, mantissa("45300.0", 1), 1)  # an eleventh level counts for nothing
    assert c_one.fh_book_crc_kraken(ctypes.byref(book.at), 0, 0) == 3310070434
    book.set(ASK, mantissa("45285.2", 1), mantissa("0.00100001", 8))
    assert c_one.fh_book_crc_kraken(ctypes.byref(book.at), 0, 0) != 3310070434


def test_okx_documented_checksum(c_one):
    book = Book(c_one, 40)
    assert c_one.fh_book_crc_okx(ctypes.byref(book.at), 1, 0) == zlib.crc32(b"")
    for side, price, size in ((BID, 33661, 7), (BID, 33660, 6), (ASK, 33668, 9), (ASK, 33680, 8)):
        book.set(side, price, size)
    assert c_one.fh_book_crc_okx(ctypes.byref(book.at), 1, 0) == zlib.crc32(b"3366.1:7:3366.8:9:3366:6:3368:8")
    book.set(BID, 33661, 0)  # a missing level is skipped
    assert c_one.fh_book_crc_okx(ctypes.byref(book.at), 1, 0) == zlib.crc32(b"3366:6:3366.8:9:3368:8")


def test_checksums_cover_ten_levels_at_kraken_and_twenty_five_at_okx(c_one):
    source, book = random.Random(8), Book(c_one, 100)
    for price in range(1, 41):
        book.set(BID, 5000 - price, source.randint(1, 10**9))
        book.set(ASK, 5000 + price * 10, source.randint(1, 10**9))
    bids, asks = book.best_first(BID), book.best_first(ASK)
    kraken = "".join(f"{price}{size}" for rows in (asks[:10], bids[:10]) for price, size in rows)
    assert c_one.fh_book_crc_kraken(ctypes.byref(book.at), 0, 0) == zlib.crc32(kraken.encode())

    def plain(number, digits):
        return f"{decimal.Decimal(number).scaleb(-digits).normalize():f}"
    okx = ":".join(f"{plain(price, 2)}:{plain(size, 4)}" for pair in zip(bids[:25], asks[:25]) for price, size in pair)
    assert c_one.fh_book_crc_okx(ctypes.byref(book.at), 2, 4) == zlib.crc32(okx.encode())


def recorded(name):
    directory = csupport.captures()
    if directory is None:
        pytest.skip("no recorded frames: set FEEDHANDLER_CAPTURES to their directory")
    with gzip.open(directory / name, "rt", encoding="utf-8", newline="\n") as lines:
        for line in lines:
            parts = line.rstrip("\n").split("\t", 3)
            if parts[2] == "in" and '"checksum"' in parts[3]:
                yield json.loads(parts[3], parse_float=str)


def test_recorded_okx_books_match_every_checksum(c_one):
    books, checked = {}, 0
    for message in recorded("okx_2022.head.tsv.gz"):
        book = books.setdefault(message["arg"]["instId"], Book(c_one, 1000))
        for data in message["data"]:
            if message["action"] == "snapshot":
                c_one.fh_book_clear(ctypes.byref(book.at))
            for side, rows in ((BID, data["bids"]), (ASK, data["asks"])):
                for price, size, *_ in rows:
                    book.set(side, mantissa(price, 8), mantissa(size, 8))
            assert c_one.fh_book_crc_okx(ctypes.byref(book.at), 8, 8) == data["checksum"] % 2**32
            checked += 1
    assert checked == 194


def test_recorded_kraken_books_match_every_checksum(c_one):
    books, checked = {}, 0
    for name in ("kraken_spot_v2_2026.tsv.gz", "kraken_spot_v2_derived.head.tsv.gz"):
        depth = 10 if "2026" in name else 1000
        for message in recorded(name):
            for data in message["data"]:
                rows = [(side, str(row["price"]), str(row["qty"])) for side, key in ((BID, "bids"), (ASK, "asks")) for row in data.get(key, [])]
                if message["type"] == "snapshot":
                    digits = [max(len(row[part].partition(".")[2]) for row in rows) for part in (1, 2)]
                    books[name, data["symbol"]] = Book(c_one, 1000), digits
                book, digits = books[name, data["symbol"]]
                for side, price, size in rows:
                    book.set(side, mantissa(price, digits[0]), mantissa(size, digits[1]))
                c_one.fh_book_truncate(ctypes.byref(book.at), depth)
                assert c_one.fh_book_crc_kraken(ctypes.byref(book.at), 0, 0) == data["checksum"], (name, data["symbol"])
                checked += 1
    assert checked == 2402 + 4
