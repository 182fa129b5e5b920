"""A strategy in Python for the tests: follows every instrument across rings until standard input ends; prints what tests/c/moves_reader.c does.

    python moves_reader.py records|numpy NAME

`records` takes typed records one by one, `numpy` whole batches.
"""
import json
import sys
import threading

import numpy

from path_reader import attach

TRADE, LEVEL, STATUS = 1, 4, 32
CODES = {1: "gaps", 11: "moved"}
FIELDS = ("first", "last", "trades", "missing", "disordered", "sequence", "fallen", "gaps", "moved")
INSTRUMENT_MAX = 4096


class Records:
    """Typed records, one by one. read() answers whether there were any."""

    def __init__(self, feed):
        self.feed, self.found = feed, {}

    def read(self):
        any_ = False
        for record in self.feed.records(timeout=0.05):
            any_ = True
            if record.instrument is None:
                continue
            one = self.found.get(record.instrument)
            if one is None:
                one = self.found[record.instrument] = dict.fromkeys(FIELDS, 0)
            if record.kind == "trade":
                step = record.trade_id - one["last"] if one["trades"] else 1
                one["first"] = one["first"] if one["trades"] else record.trade_id
                one["disordered"] += step <= 0
                one["missing"] += step > 1
                one["last"] = record.trade_id
                one["trades"] += 1
            elif record.kind == "level":
                one["fallen"] += record.sequence < one["sequence"]
                one["sequence"] = record.sequence
            elif record.kind == "status":
                one["gaps"] += record.code == "GAP"
                one["moved"] += record.code == "MOVED_IN"
        return any_

    def instruments(self):
        return self.found


class Batches:
    """Whole batches: every column of all instruments at once."""

    def __init__(self, feed):
        self.feed = feed
        self.table = {field: numpy.zeros(INSTRUMENT_MAX, "u8") for field in FIELDS}

    def read(self):
        batch = self.feed.poll(timeout=0.05)
        if len(batch) == 0:
            return False
        rows = numpy.frombuffer(batch.records.tobytes(), batch.records.dtype)
        assert batch.valid(), "overwritten while it was read"
        words = rows.view("<u8").reshape(-1, 8)
        table, kinds, ids = self.table, rows["kind"], rows["instrument"]
        for kind, column in ((TRADE, "last"), (LEVEL, "sequence")):
            some = numpy.flatnonzero(kinds == kind)
            if len(some):
                self.steps(kind, column, ids[some], words[some, 6].astype("i8"))
        for row in numpy.flatnonzero((kinds == STATUS) & (ids < INSTRUMENT_MAX)):
            field = CODES.get(int(words[row, 4] & 0xffffffff))
            if field:
                table[field][ids[row]] += 1
        return True

    def steps(self, kind, column, ids, values):
        """Each value against the one before it of the same instrument."""
        table = self.table
        order = numpy.argsort(ids, kind="stable")
        ids, values = ids[order], values[order]
        begins = numpy.flatnonzero(numpy.diff(ids, prepend=-1))
        ends = numpy.append(begins[1:], len(ids)) - 1
        before = numpy.empty_like(values)
        before[1:] = values[:-1]
        heads = ids[begins]
        if kind == TRADE:
            fresh = table["trades"][heads] == 0
            before[begins] = numpy.where(fresh, values[begins] - 1, table["last"][heads].astype("i8"))
            table["first"][heads] = numpy.where(fresh, values[begins], table["first"][heads])
            numpy.add.at(table["trades"], ids, 1)
            numpy.add.at(table["disordered"], ids[values <= before], 1)
            numpy.add.at(table["missing"], ids[values > before + 1], 1)
        else:
            before[begins] = table[column][heads]
            numpy.add.at(table["fallen"], ids[values < before], 1)
        table[column][heads] = values[ends]

    def instruments(self):
        used = numpy.flatnonzero((self.table["trades"] > 0) | (self.table["sequence"] > 0))
        return {int(id): {field: int(self.table[field][id]) for field in FIELDS} for id in used}


def main(way, name):
    feed = attach(name, "moves")
    reader, over = {"records": Records, "numpy": Batches}[way](feed), threading.Event()
    print("attached", flush=True)
    threading.Thread(target=lambda: (sys.stdin.read(), over.set()), daemon=True).start()
    while True:
        ending = over.is_set()
        if not reader.read() and ending:
            break
    print(json.dumps({"lost": feed.lost, "instruments": {str(id): one for id, one in reader.instruments().items()}}), flush=True)


main(*sys.argv[1:])
