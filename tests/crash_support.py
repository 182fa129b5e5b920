"""Whole instances for the crash tests: simulated venues, start and stop, and a witness that checks every record it reads.

The witness builds the same seeded market as the simulator, so it knows every trade, every touch and every book that
was ever sent: a record that is torn, stale, doubled or out of order cannot look right to it.
"""
import collections
import itertools
import json
import math
import os
import pathlib
import signal
import ssl
import struct
import subprocess
import sys
import time
import tomllib
import urllib.request

import pytest

import feedhandler
from feedhandler import instance
from feedhandler.simulate import market
from feedhandler.simulate.server import SideOptions, Simulator, SimulatorConfig, load

PRODUCT = pathlib.Path(__file__).parents[1]
WAIT_S = 30.0
RECORD = struct.Struct("<QQQIBBHqqqq")
TRADE, QUOTE, TOUCH, LEVEL, STATUS = 1, 2, 3, 4, 32
LAST, SNAPSHOT, RESET, GAP_BEFORE = 1, 2, 4, 8
GAP, STALE, LIVE, EPOCH, SESSION_DOWN, WORKER_SILENT = 1, 3, 4, 7, 9, 15
CHANNEL_TRADE, CHANNEL_BOOK = 0, 3
BID, ASK = 1, 2
numbers = itertools.count()


def new_name():
    return f"test-{os.getpid()}-cr{next(numbers)}"


def verb(*words, env, **options):
    return subprocess.run([sys.executable, "-m", "feedhandler", *words], capture_output=True, text=True, timeout=90, env=env, **options)


def until(condition, what, seconds=WAIT_S):
    """Wait for a condition; its value."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.002)
    pytest.fail(f"not within {seconds} s: {what}")


class Simulated:
    """`feedhandler simulate` in a process of its own; env and folder are for whatever uses it."""

    def __init__(self, folder, venues=("deribit", "binance-spot"), instruments=4, rate=1500, words=()):
        self.folder, self.venues, self.instruments = pathlib.Path(folder), venues, instruments
        self.env = {**os.environ, "PYTHONPATH": str(PRODUCT), "XDG_STATE_HOME": str(folder)}
        path = self.folder / "given.toml"
        chosen = [word for venue in venues for word in ("--venue", venue)]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "feedhandler", "simulate", *chosen, "--instruments", str(instruments), "--rate", str(rate), "--no-limits",
             "--directory", str(folder), "--config-out", str(path), "--json", *words],
            env=self.env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        line = json.loads(self.process.stdout.readline())
        self.admin, self.ca_file = line["admin"], line["ca_file"]
        self.given = tomllib.loads(until(lambda: path.exists() and path.read_text(), "the simulator's configuration"))

    def ask(self, what, **fault):
        """The admin side: `fault` with fields injects one."""
        data = json.dumps(fault).encode() if fault else None
        context = ssl.create_default_context(cafile=self.ca_file)
        with urllib.request.urlopen(f"{self.admin}/{what}", data, timeout=10, context=context) as answer:
            return json.load(answer)

    def write(self, name, workers=2, slots=65536, restart="crashes = 100\nwindow_s = 1", channels=("trade", "quote", "book")):
        """A configuration of this name over our venues, without budgets that would slow a crash test; its path."""
        text = f'[instance]\nname = "{name}"\nworkers = {workers}\n[ring]\nslots = {slots}\n[instruments]\nmax = 64\n[restart]\n{restart}\n'
        for venue, entry in self.given["venues"].items():
            text += f'[venues.{venue}]\nrest = "{entry["rest"]}"\nca_file = "{entry["ca_file"]}"\nrest_weight = {{ n = 1000000, per_s = 1 }}\n'
            text += "".join(f'urls."{endpoint}" = "{url}"\n' for endpoint, url in entry["urls"].items())
            text += "".join(f'limits."{endpoint}".attempts = [{{ n = 100000, per_s = 1 }}]\n' for endpoint in entry["urls"])
        for entry in self.given["subscribe"]:
            text += f'[[subscribe]]\nvenue = "{entry["venue"]}"\nsymbols = {json.dumps(entry["symbols"])}\nchannels = {json.dumps(list(channels))}\n'
        path = self.folder / f"{name}.toml"
        path.write_text(text)
        return str(path)

    def market(self):
        """{(venue, symbol): market.Instrument} as the simulator draws it."""
        config = SimulatorConfig(venues=tuple(self.venues), instruments=self.instruments)
        simulator, found = Simulator(config), {}
        for venue in self.venues:
            side = load(venue)(simulator, SideOptions(config))
            side.listing(config.instruments)
            market.generate(list(side.instruments.values()), config.seed, config.levels, side.contiguous)
            found.update(((venue, symbol), one) for symbol, one in side.instruments.items())
        return found

    def close(self):
        self.process.send_signal(signal.SIGINT)
        self.process.stdout.read()
        self.process.wait(15)


class Instance:
    """One started instance; leaves nothing behind."""

    def __init__(self, simulated, expect=0, **options):
        self.simulated, self.env, self.name = simulated, simulated.env, new_name()
        self.path = simulated.write(self.name, **options)
        done = self.start()
        assert done.returncode == expect, done.stdout + done.stderr

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pids = self.pids() if os.path.exists(f"{self.directory}/{instance.MANIFEST}") else []
        self.verb("stop")
        assert not os.path.exists(self.directory) and not os.path.exists(instance.lock_path(self.name))
        assert not any(instance.alive(pid, instance.pid_start(pid)) for pid in pids)

    @property
    def directory(self):
        return instance.directory(self.name)

    def start(self):
        return verb("start", "-c", self.path, env=self.env)

    def verb(self, *words):
        return verb(*words, "-n", self.name, env=self.env)

    def status(self):
        return json.loads(self.verb("status", "--json").stdout)

    def pids(self):
        return [row["pid"] for row in instance.manifest_read(self.name)["workers"]]

    def supervisor(self):
        return instance.manifest_read(self.name)["supervisor"]["pid"]

    def events(self, event):
        """Those of the supervisor's log."""
        with open(f"{self.directory}/supervisor.log") as lines:
            return [entry for entry in map(json.loads, lines) if entry["event"] == event]

    def kill_supervisor(self):
        os.kill(self.supervisor(), signal.SIGKILL)
        until(lambda: not instance.locked(self.name), "the lock falls with its holder")

    def kill_all(self):
        """As a machine that loses power: nobody tidies up. The launcher ends with its supervisor."""
        for pid in (self.supervisor(), *self.pids()):
            os.kill(pid, signal.SIGKILL)
        until(lambda: not instance.locked(self.name) and not instance.ring_writers(self.name), "all locks fall")


class _Ring:
    def __init__(self):
        self.next = self.epoch = None
        self.epochs = self.gaps = self.records = self.fresh = self.silent = self.lives = self.downs = 0
        self.void = 0                # positions a dead writer left unfinished
        self.epoch_ns = self.fresh_ns = 0
        self.event = []
        self.codes = collections.Counter()   # STATUS records by code


class _Known:
    """What is right for one instrument, and where its streams stand."""

    def __init__(self, sim, price_power, size_power):
        self.sim, self.price_power, self.size_power = sim, price_power, size_power
        self.index = {event.last % sim.span: at for at, event in enumerate(sim.loop)}
        self.trades = {event.trades_before: event.trade for event in sim.loop if event.trade}
        self.touches = {event.touch for event in sim.loop}
        self.book, self.owed, self.touch = None, set(), None
        self.trade_id = self.sequence = None
        self.excused = False         # a GAP allows the next trade to leave numbers out
        self.seen = set()            # channels delivered
        self.booked = False          # its book was whole once
        self.ring = None

    def price(self, mantissa):
        return _power(mantissa, self.price_power)

    def size(self, mantissa):
        return _power(mantissa, self.size_power)

    def best(self):
        bid, ask = max(self.book[BID]), min(self.book[ASK])
        return bid, self.book[BID][bid], ask, self.book[ASK][ask]


def _power(mantissa, power):
    if power >= 0:
        return mantissa * 10 ** power
    value, rest = divmod(mantissa, 10 ** -power)
    assert rest == 0, "a value with digits the market does not have"
    return value


class Witness:
    """Reads an instance as a strategy does and asserts that every record is whole, true and in its place."""

    def __init__(self, name, market):
        self.feed = feedhandler.attach(name, reader_name="witness")
        self.market = market
        self.rings, self.known = {}, {}

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.feed.close()

    def ring(self, number):
        return self.rings.setdefault(number, _Ring())

    def poll(self, timeout=0.02):
        """Take what is there, or wait for it."""
        batch = self.feed.poll(timeout)
        assert batch.lost == 0, "this reader was lapped: the test is too slow"
        if len(batch) == 0:
            return
        data = batch.records.tobytes()
        assert batch.valid()
        now, ring = time.time_ns(), self.ring(batch.ring)
        for words in RECORD.iter_unpack(data):
            self.take(ring, words, now)

    def read(self, seconds):
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self.poll(min(left, 0.02))

    def until(self, condition, what, seconds=WAIT_S):
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, f"not within {seconds} s: {what}"
            self.poll()

    def take(self, ring, words, now):
        commit, ts_recv, _, instrument, kind, flags, _, *body = words
        if commit == 0:
            assert (kind, flags) == (STATUS, LAST), "a reader's own record is a status"
            ring.silent += body[0] == WORKER_SILENT
            ring.lives += body[0] == LIVE
            return
        if kind == STATUS and body[0] & 0xffffffff == EPOCH:
            self.resumed(ring, commit - 1, body[1], ts_recv)
        else:
            assert ring.next in (None, commit - 1), f"position {commit - 1} after {ring.next - 1}"
        ring.next = commit
        ring.records += 1
        assert abs(now - ts_recv) < 60e9, "received this minute"
        if kind == STATUS:
            self.status(ring, instrument, flags, body)
            return
        known = self.of(instrument, ring)
        assert kind in (TRADE, QUOTE, TOUCH, LEVEL), f"kind {kind}"
        ring.event.append((instrument, kind, flags, body))
        if flags & LAST:
            event, ring.event = ring.event, []
            ring.fresh += 1
            ring.fresh_ns = ring.fresh_ns or ts_recv
            assert {(part[0], part[1]) for part in event} == {(instrument, kind)}, "an event is of one instrument and kind"
            {TRADE: self.trade, QUOTE: self.quote, TOUCH: self.at_touch, LEVEL: self.levels}[kind](known, event)

    def resumed(self, ring, position, epoch, ts_recv):
        """A new writer took the ring: what it goes on with must begin with a GAP."""
        assert ring.next is None or position >= ring.next
        ring.void += 0 if ring.next is None else position - ring.next
        assert not ring.event, "what a dead writer left of an event is not delivered"
        assert ring.epoch is None or epoch == ring.epoch + 1
        ring.epoch, ring.epochs, ring.epoch_ns, ring.fresh_ns = epoch, ring.epochs + 1, ts_recv, 0
        for known in self.known.values():
            if known.ring is ring:
                self.interrupted(known)

    def interrupted(self, known):
        known.owed, known.book = set(known.seen), None

    def of(self, instrument, ring):
        if instrument not in self.known:
            row = self.feed.instrument_at(instrument)
            sim = self.market[row.venue, row.symbol]
            price, size = (round(math.log10(scale[instrument])) for scale in (self.feed.price_scale, self.feed.size_scale))
            self.known[instrument] = _Known(sim, sim.price_digits + price, sim.size_digits + size)
        self.known[instrument].ring = ring
        return self.known[instrument]

    def status(self, ring, instrument, flags, body):
        code, channel = body[0] & 0xffffffff, body[0] >> 32
        assert flags == LAST and 1 <= code < WORKER_SILENT
        ring.codes[code] += 1
        ring.downs += code == SESSION_DOWN
        if code == GAP:
            ring.gaps += 1
            known = self.of(instrument, ring)
            known.owed.discard(channel)
            if channel == CHANNEL_BOOK:
                known.book = None
            elif channel == CHANNEL_TRADE:
                known.excused = True

    def trade(self, known, event):
        (_, _, flags, (price, size, identity, rest)), = event
        assert CHANNEL_TRADE not in known.owed, "a trade before its GAP"
        known.seen.add(CHANNEL_TRADE)
        assert (known.price(price), known.size(size), rest & 0xff) == _taken(known.sim, known.trades, identity)
        if known.trade_id is not None:
            assert identity > known.trade_id, "a trade comes once"
            assert identity == known.trade_id + 1 or known.excused, f"trade {identity} after {known.trade_id} without a GAP"
        known.trade_id, known.excused = identity, False

    def quote(self, known, event):
        (_, _, _, (bid, bid_size, ask, ask_size)), = event
        assert (known.price(bid), known.size(bid_size), known.price(ask), known.size(ask_size)) in known.touches

    def levels(self, known, event):
        assert CHANNEL_BOOK not in known.owed, "a level before its GAP"
        known.seen.add(CHANNEL_BOOK)
        if event[0][2] & RESET:
            assert event[0][2] & SNAPSHOT
            known.book = {BID: {}, ASK: {}}
        elif known.book is None:
            assert not known.booked, "a change of a broken book without a snapshot"
            return                   # we attached in the middle of its life
        known.booked = True
        sequence = event[0][3][2]
        for _, _, flags, (price, size, of, rest) in event:
            assert of == sequence and rest & 0xff in (BID, ASK) and size >= 0
            side = known.book[rest & 0xff]
            if size:
                side[known.price(price)] = known.size(size)
            else:
                side.pop(known.price(price), None)
        at = known.index.get((sequence - known.sim.sequence_start) % known.sim.span)
        if at is not None:           # a REST snapshot may lie inside an event
            assert known.best() == known.sim.loop[at].touch
            if event[0][2] & RESET:
                assert [known.book[BID], known.book[ASK]] == list(known.sim.book(at + 1))
        known.touch = known.best()
        assert known.touch[0] < known.touch[2]

    def at_touch(self, known, event):
        (_, _, _, (bid, bid_size, ask, ask_size)), = event
        if known.book is not None:
            assert (known.price(bid), known.size(bid_size), known.price(ask), known.size(ask_size)) == known.touch, "touch and levels agree"


def _taken(sim, trades, identity):
    price, size, side = trades[(identity - sim.trade_start) % sim.trades_per_loop]
    return price, size, side + 1
