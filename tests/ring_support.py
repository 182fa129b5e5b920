"""The C of ring, state, counters and feed, opened to Python: writers, readers and whole instances in shared memory."""
import ctypes
import functools
import os
import random
import struct
from pathlib import Path

import pytest

import csupport

SOURCES = [f"cext/{name}" for name in ("fh_file.c", "fh_ring.c", "fh_state.c", "fh_counters.c")]


def program(source, *flags, compiler="gcc"):
    """Path of a program made of tests/c/<source> and the sources above."""
    return csupport.build(Path(source).stem, [f"tests/c/{source}", *SOURCES], flags, compiler, program=True)


def library():
    """The shim; with FEEDHANDLER_SANITIZE=1 under sanitizers (see test_sanitizers.py)."""
    flags = csupport.SANITIZE if os.environ.get("FEEDHANDLER_SANITIZE") else []
    return shared(str(csupport.build("shim", ["tests/c/shim.c", *SOURCES], flags)))


@functools.cache
def shared(path):
    return ctypes.CDLL(path, use_errno=True)


TRADE, LEVEL, STATUS = 1, 4, 32
LAST = 1
LIVE, EPOCH, MOVED_OUT, MOVED_IN, CHANGED, SILENT = 4, 7, 10, 11, 12, 15
OK, EMPTY, LAPPED, NEW_RING, SMALL = 0, 1, 2, 3, 4
ABSENT, BAD = -1, -2
E_MALFORMED, E_UNKNOWN, E_RANGE, E_SYSTEM = -1, -2, -7, -9
MAGIC = {"state": 0x0031415453484600, "instruments": 0x0031534E49484600, "readers": 0x0031444552484600}
ROW = {"state": 1856, "instruments": 256, "readers": 64 + 16 * 256}
RECORD = struct.Struct("<QQQIBBHqqqq")
SLOTS = 1024


def function(name, result, *arguments):
    found = getattr(library(), name)
    found.restype, found.argtypes = result, arguments
    return found


P, I, U32, U64, SIZE, TEXT = ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_size_t, ctypes.c_char_p
REF = ctypes.POINTER


class Writer:
    def __init__(self, directory, worker=0, slots=SLOTS, resume=False):
        descriptor = os.open(directory, os.O_RDONLY)
        result = I()
        try:
            if resume:
                self.at = function("t_writer_resume", P, I, U32, REF(I))(descriptor, worker, result)
            else:
                self.at = function("t_writer_create", P, I, U32, U64, REF(I))(descriptor, worker, slots, result)
            self.errno = ctypes.get_errno()
        finally:
            os.close(descriptor)
        self.result = result.value

    def put(self, number=0, kind=TRADE, flags=LAST, instrument=1, in_place=False):
        self._put(in_place, instrument, kind, flags, number, 0, 0, 0)

    def status(self, code, a=0, b=0, instrument=1, c=0):
        self._put(False, instrument, STATUS, LAST, code, a, b, c)

    def _put(self, in_place, instrument, kind, flags, *words):
        put = function("t_put_slot" if in_place else "t_put", None, P, U32, I, I, REF(ctypes.c_int64))
        put(self.at, instrument, kind, flags, (ctypes.c_int64 * 4)(*words))

    def many(self, count):
        function("t_put_many", None, P, U64)(self.at, count)

    def torn(self):
        function("t_put_torn", None, P)(self.at)

    def flush(self):
        function("t_flush", None, P)(self.at)

    def wake(self, ahead_ns=0):
        """ahead_ns: as at so much later, so that the gap behind it lasts longer than its 50 µs."""
        function("t_wake", None, P, U64)(self.at, ahead_ns)

    def waits_on(self, readers):
        function("t_waiting", None, P, P)(self.at, readers)

    def heartbeat(self, age_ns=0):
        function("t_heartbeat", None, P, ctypes.c_int64)(self.at, age_ns)

    @property
    def position(self):
        return function("t_position", U64, P)(self.at)

    @property
    def wake_count(self):
        return function("t_wake_count", U64, P)(self.at)

    def die(self):
        function("t_writer_die", None, P)(self.at)
        self.at = None

    def close(self):
        if self.at:
            function("t_writer_close", None, P)(self.at)
            self.at = None


class Reader:
    def __init__(self, directory, worker=0, max_count=4096):
        result, error = I(), ctypes.create_string_buffer(400)
        self.at = function("t_reader", P, TEXT, REF(I), TEXT, SIZE)(
            f"{directory}/worker-{worker}.ring".encode(), result, error, 400)
        self.result, self.error = result.value, error.value.decode()
        self.room = ctypes.create_string_buffer(64 * max_count)
        self.max_count = max_count

    def _call(self, name, max_count):
        count, lost = SIZE(), U64()
        result = function(name, I, P, P, SIZE, REF(SIZE), REF(U64))(self.at, self.room, max_count or self.max_count, count, lost)
        return result, [RECORD.unpack_from(self.room, 64 * i) for i in range(count.value)], lost.value

    def batch(self, advance=True):
        result, records, lost = self._call("t_batch", 0)
        if result == OK and advance:
            assert self.advance(len(records))
        return result, records, lost

    def advance(self, count):
        return function("t_advance", I, P, SIZE)(self.at, count)

    def poll(self, max_count=0):
        return self._call("t_poll", max_count)

    def numbers(self):
        numbers = (U64 * 3)()
        function("t_reader_numbers", None, P, REF(U64))(self.at, numbers)
        return tuple(numbers)

    def close(self):
        if self.at:
            function("t_reader_close", None, P)(self.at)
            self.at = None


@pytest.fixture
def place(tmp_path_factory):
    """A directory in shared memory, and the closing of all that was opened through it."""
    directory = Path(f"/dev/shm/test-{os.getpid()}-{random.getrandbits(40):x}")
    directory.mkdir()
    opened = []

    class Place:
        path = directory

        def writer(self, *arguments, **options):
            opened.append(Writer(directory, *arguments, **options))
            return opened[-1]

        def reader(self, *arguments, **options):
            opened.append(Reader(directory, *arguments, **options))
            return opened[-1]

    yield Place()
    for one in opened:
        one.close()
    for file in directory.iterdir():
        file.unlink()
    directory.rmdir()


def numbers(records):
    return [record[7] for record in records]


def corrupt(path, offset, data):
    with open(path, "r+b") as file:
        file.seek(offset)
        file.write(data)


def table(directory, name, row_max=4, create=1):
    descriptor = os.open(directory, os.O_RDONLY)
    result = I()
    try:
        at = function("t_table", P, I, TEXT, U64, U32, U32, I, REF(I))(
            descriptor, name.encode(), MAGIC[name], ROW[name], row_max, create, result)
    finally:
        os.close(descriptor)
    return at, result.value


class Feed:
    def __init__(self, directory):
        result, error = I(), ctypes.create_string_buffer(400)
        self.at = function("t_feed", P, TEXT, REF(I), TEXT, SIZE)(str(directory).encode(), result, error, 400)
        self.result, self.error = result.value, error.value.decode()
        self.room = ctypes.create_string_buffer(64 * 4096)

    def poll(self, max_count=4096):
        count, worker, lost = SIZE(), U32(), U64()
        result = function("t_feed_poll", I, P, P, SIZE, REF(SIZE), REF(U32), REF(U64))(
            self.at, self.room, max_count, count, worker, lost)
        return result, worker.value, [RECORD.unpack_from(self.room, 64 * i) for i in range(count.value)], lost.value

    def drain(self):
        """(worker, number) of every record until nothing is left."""
        seen = []
        while (answer := self.poll())[0] == OK:
            seen += [(answer[1], number) for number in numbers(answer[2])]
        return seen

    def wait(self, timeout_ns):
        function("t_feed_wait", None, P, U64)(self.at, timeout_ns)

    def close(self):
        if self.at:
            function("t_feed_close", None, P)(self.at)
            self.at = None


@pytest.fixture
def instance(place):  # noqa: F811
    """An instance with its three tables; writers come from place."""
    tables = {name: table(place.path, name, 64 if name == "readers" else 4)[0] for name in MAGIC}
    instrument = struct.pack("<IBBbbHHbBHqqqQq24s48s64s64x", 2, 1, 2, -2, -3, 0, 0, 0, 0, 0, 1, 1, 1, 0, -(2**63),
                             b"binance-usdm", b"BTCUSDT", b"BTC-USDT-PERP")
    ctypes.memmove(function("t_instrument", P, P, U32)(tables["instruments"], 2), instrument, 256)
    feeds = []
    place.tables = tables
    place.feed = lambda: feeds.append(Feed(place.path)) or feeds[-1]
    yield place
    for feed in feeds:
        feed.close()
    for at in tables.values():
        function("t_table_close", None, P)(at)
