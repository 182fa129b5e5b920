# cython: language_level=3
"""The supervisor's side of `instruments`, `state` and `readers`: creates them, fills `instruments`, follows it later.

Who writes: `instruments` the supervisor alone; `state` and `readers` are created here and written by others.
What blocks: nothing. What survives a crash: everything; open() finds the rows a dead supervisor wrote.
"""
import os

from libc.errno cimport errno
from libc.string cimport memcpy, memset
from feedhandler._cext cimport *

cdef extern from *:
    """
    /* Release: a reader that sees this state also sees the row before it. Pairs with the acquire load of state in readers. */
    static void fh_row_publish(fh_instrument *row, uint8_t state) { __atomic_store_n(&row->state, state, __ATOMIC_RELEASE); }
    /* Release: a reader that sees this generation also sees the rows listed before it. Pairs with the load in Feed.refresh(). */
    static void fh_generation_next(uint64_t *generation) { __atomic_store_n(generation, *generation + 1, __ATOMIC_RELEASE); }
    """
    void fh_row_publish(fh_instrument *row, uint8_t state) nogil
    void fh_generation_next(uint64_t *generation) nogil

KINDS = {"spot": FH_SPOT, "perpetual": FH_PERPETUAL, "future": FH_FUTURE, "option": FH_OPTION}
LISTED, SUBSCRIBED, DELISTED = FH_LISTED, FH_SUBSCRIBED, FH_DELISTED
UNDEFINED = FH_UNDEFINED
HEAD_SIZE = 4096


def size_needed(row_max, worker_count, slot_count):
    """Bytes all files of an instance take in /dev/shm, page rounding included."""
    tables = (HEAD_SIZE + row_max * sizeof(fh_instrument), HEAD_SIZE + row_max * sizeof(fh_state_row),
              HEAD_SIZE + FH_READER_MAX * sizeof(fh_reader_slot))
    worker = (sizeof(fh_ring) + slot_count * FH_SLOT_SIZE, sizeof(fh_counters))
    return sum(map(_pages, tables)) + worker_count * sum(map(_pages, worker))


def _pages(size):
    return -(-size // 4096) * 4096


def create(int dir_fd, row_max, generation):
    """Create the three files; OSError names the file."""
    for name, magic, row_size, rows in (
            ("state", FH_MAGIC_STATE, sizeof(fh_state_row), row_max),
            ("readers", FH_MAGIC_READERS, sizeof(fh_reader_slot), FH_READER_MAX),
            ("instruments", FH_MAGIC_INSTRUMENTS, sizeof(fh_instrument), row_max)):
        _create(dir_fd, name, magic, row_size, rows, generation)


cdef _create(int dir_fd, str name, uint64_t magic, uint32_t row_size, uint32_t row_max, uint64_t generation):
    cdef fh_table table
    cdef bytes text = name.encode()
    cdef int result = fh_table_create(&table, dir_fd, text, magic, row_size, row_max, generation)
    if result != FH_OK:
        raise _error(result, name)
    fh_table_close(&table)


cdef _error(int result, name):
    if result == FH_ERROR_SYSTEM:
        return OSError(errno, os.strerror(errno), name)
    return OSError(0, f"error {result}: the file is damaged or of another version", name)


cdef class Instruments:
    """`instruments`, mapped read-write."""
    cdef fh_table table

    def __init__(self, int dir_fd):
        cdef int result = fh_table_open(&self.table, dir_fd, "instruments", FH_MAGIC_INSTRUMENTS, sizeof(fh_instrument))
        if result != FH_OK:
            raise _error(result, "instruments")

    def close(self):
        if self.table.file != NULL:
            fh_table_close(&self.table)

    def __dealloc__(self):
        self.close()

    @property
    def row_max(self):
        return self.table.row_max

    @property
    def generation(self):
        return self.table.file.generation

    cdef fh_instrument *row(self, uint32_t id) except NULL:
        if self.table.file == NULL or id >= self.table.row_max:
            raise IndexError(f"instrument {id}: the table has {self.table.row_max} rows")
        return &(<fh_instrument *>self.table.rows)[id]

    def put(self, uint32_t id, str kind, int price_exponent, int size_exponent, int venue, int64_t tick, int64_t lot,
            int64_t multiplier, int multiplier_exponent, bint inverse, uint64_t expiry_ns, int64_t strike,
            str venue_name, str symbol, str canonical, int owner=0):
        """Fill a row and show it as LISTED. ValueError where a text does not fit.

        Its exponents are those its first record comes in and stay as they are: what changes later is told in the ring
        and held in `state`, so that a reader that is behind never meets the exponents of a record to come."""
        cdef fh_instrument *row = self.row(id)
        fh_row_publish(row, 0)
        memset(row, 0, sizeof(fh_instrument))
        row.id = id
        row.kind = KINDS[kind]
        row.price_exponent, row.size_exponent = price_exponent, size_exponent
        row.owner, row.venue = owner, venue
        row.tick, row.lot, row.multiplier, row.multiplier_exponent = tick, lot, multiplier, multiplier_exponent
        row.inverse, row.expiry_ns, row.strike = inverse, expiry_ns, strike
        _text(row.venue_name, sizeof(row.venue_name), venue_name)
        _text(row.symbol, sizeof(row.symbol), symbol)
        _text(row.canonical, sizeof(row.canonical), canonical)
        fh_row_publish(row, FH_LISTED)
        fh_generation_next(&self.table.file.generation)

    def set_state(self, uint32_t id, int state):
        fh_row_publish(self.row(id), state)

    def set_owner(self, uint32_t id, int worker):
        self.row(id).owner = worker

    def get(self, uint32_t id):
        """A row as a dict, or None where it is free."""
        cdef fh_instrument *row = self.row(id)
        if row.state == 0:
            return None
        return {"id": row.id, "kind": row.kind, "state": row.state, "price_exponent": row.price_exponent,
                "size_exponent": row.size_exponent, "owner": row.owner, "venue": row.venue, "tick": row.tick, "lot": row.lot,
                "multiplier": row.multiplier, "multiplier_exponent": row.multiplier_exponent, "inverse": bool(row.inverse),
                "expiry_ns": row.expiry_ns, "strike": row.strike, "venue_name": row.venue_name.decode("utf-8", "replace"),
                "symbol": row.symbol.decode("utf-8", "replace"), "canonical": row.canonical.decode("utf-8", "replace")}

    def rows(self):
        """All rows in use, by id."""
        return [row for row in map(self.get, range(self.table.row_max)) if row is not None]


cdef _text(char *at, size_t size, str text):
    cdef bytes data = text.encode()
    cdef size_t length = len(data)
    if length >= size or not length:
        raise ValueError(f"{text!r} does not fit: 1 to {size - 1} bytes of UTF-8")
    memcpy(at, <const char *>data, length)
