"""The symbol table (fh_symbols): any UTF-8 of 1 to 48 bytes to an instrument, and never one that was not put there."""
import ctypes
import random

import pytest

import csupport

OK, FULL, RANGE, NONE = 0, -4, -7, 2**32 - 1


class Symbols:
    def __init__(self, symbol_max):
        self.c = csupport.load("symbols", ["cext/fh_symbols.c"])
        self.c.fh_symbols_new.restype = ctypes.c_void_p
        self.c.fh_symbols_get.restype = ctypes.c_uint32
        self.at = ctypes.c_void_p(self.c.fh_symbols_new(ctypes.c_uint32(symbol_max)))

    def put(self, symbol, instrument):
        return self.c.fh_symbols_put(self.at, symbol, ctypes.c_size_t(len(symbol)), ctypes.c_uint32(instrument))

    def get(self, symbol):
        return self.c.fh_symbols_get(self.at, symbol, ctypes.c_size_t(len(symbol)))

    def __del__(self):
        self.c.fh_symbols_free(self.at)


def test_symbols_that_differ_in_one_byte_are_different_instruments():
    symbols = Symbols(200)
    names = ["BTCUSDT", "BTCUSDC", "btcusdt", "B", "b", "BTC-USD-241227-100000-C", "BTC-USD-241227-100000-P", "牛来USDT", "牛USDT", "\x00", "\x00\x00"]
    names += ["x" * size for size in range(1, 49)] + ["y" * 47 + last for last in "ab"] + ["ab" + "y" * 46, "a\0", "a"]
    for instrument, name in enumerate(names):
        assert symbols.put(name.encode(), instrument) == OK
    for instrument, name in enumerate(names):
        assert symbols.get(name.encode()) == instrument
        assert symbols.get(name.encode() + b"~") == symbols.get(b"~" + name.encode()) == NONE


def test_only_sizes_of_1_to_48_bytes_are_symbols():
    symbols = Symbols(4)
    assert [symbols.put(b"a" * size, 1) for size in (0, 1, 48, 49, 1000)] == [RANGE, OK, OK, RANGE, RANGE]
    assert [symbols.get(b"a" * size) for size in (0, 1, 48, 49, 1000)] == [NONE, 1, 1, NONE, NONE]
    assert symbols.put(b"b", NONE) == RANGE


def test_a_full_table_refuses_new_symbols_and_still_replaces_and_looks_up():
    for symbol_max in (0, 1, 3, 4, 5, 64):
        symbols = Symbols(symbol_max)
        assert [symbols.put(b"s%d" % index, index) for index in range(symbol_max + 2)] == [OK] * symbol_max + [FULL] * 2
        assert symbols.get(b"s%d" % symbol_max) == NONE and symbols.get(b"never") == NONE
        if symbol_max:
            assert symbols.put(b"s0", 77) == OK and symbols.get(b"s0") == 77


def test_a_look_up_never_inserts():
    symbols = Symbols(2)
    assert {symbols.get(b"%d" % index) for index in range(10000)} == {NONE}
    assert [symbols.put(b"a", 1), symbols.put(b"b", 2)] == [OK, OK]


def test_ten_thousand_generated_symbols_agree_with_a_dict():
    source, symbols, oracle = random.Random(4), Symbols(10000), {}
    for instrument in range(10000):
        name = "".join(source.choices("ABCDEFGHIJ0123456789-_/牛", k=source.randint(1, 16))).encode()
        assert symbols.put(name, instrument) == OK
        oracle[name] = instrument
    assert all(symbols.get(name) == instrument for name, instrument in oracle.items())
    for name in oracle:
        assert symbols.get(name + b"!") == NONE


def test_a_look_up_reads_no_byte_beyond_the_symbol():
    guard, symbols = csupport.Guard(4096), Symbols(60)
    end = guard.base + guard.size
    for size in range(1, 49):
        name = bytes(range(65, 65 + size))
        symbols.put(name, size)
        ctypes.memmove(end - size, name, size)
        assert symbols.c.fh_symbols_get(symbols.at, ctypes.c_void_p(end - size), ctypes.c_size_t(size)) == size
    guard.close()
