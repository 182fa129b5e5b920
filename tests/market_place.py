"""A worker's data plane without processes: a directory with tables, and a publisher on it. For tests of readers."""
import contextlib
import ctypes
import itertools
import os
import struct
import tempfile

from feedhandler.worker.publisher import Publisher
import csupport
from ring_support import MAGIC, ROW

_numbers = itertools.count()
ROW_MAX = 64
CORE = ("cext/fh_file.c", "cext/fh_ring.c", "cext/fh_state.c", "cext/fh_counters.c", "cext/fh_book.c", "cext/fh_crc32.c",
        "cext/fh_decimal.c")


class Instruments:
    """Rows of an `instruments` file, written as the supervisor does."""

    def __init__(self, path):
        self.path = path

    def put(self, id, venue, symbol, canonical, price_exponent, size_exponent, owner=0):
        row = struct.pack("<IBBbbHHbBHqqqQq24s48s64s64x", id, 1, 1, price_exponent, size_exponent, owner, 0, 0, 0, 0, 1, 1, 1, 0,
                          -2**63, venue.encode(), symbol.encode(), canonical.encode())
        with open(self.path, "r+b") as file:
            file.seek(4096 + 256 * id)
            file.write(row)


@contextlib.contextmanager
def place(workers=1, slot_count=4096, level_max=1000):
    """(directory, Instruments, [Publisher, …]); everything is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix=f"feedhandler-test-{os.getpid()}-{next(_numbers)}-", dir="/dev/shm") as directory:
        library = csupport.load("tables", CORE)
        dir_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        publishers = []
        try:
            for name in MAGIC:
                table = (ctypes.c_uint64 * 8)()
                answer = library.fh_table_create(table, dir_fd, name.encode(), ctypes.c_uint64(MAGIC[name]), ROW[name],
                                                 ROW_MAX, ctypes.c_uint64(1))
                assert answer == 0, name
                library.fh_table_close(table)
            for worker in range(workers):
                publishers.append(Publisher(dir_fd, worker, slot_count, ROW_MAX, level_max))
            yield directory, Instruments(f"{directory}/instruments"), publishers
        finally:
            for publisher in publishers:
                publisher.close()
            os.close(dir_fd)


def resume(directory, worker, slot_count=4096, level_max=1000):
    """A Publisher that takes up a ring left behind."""
    dir_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return Publisher(dir_fd, worker, slot_count, ROW_MAX, level_max, 1, True)
    finally:
        os.close(dir_fd)
