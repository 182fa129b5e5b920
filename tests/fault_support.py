"""A simulated exchange in a thread, an instance that reads from it, and a watcher that checks every record it publishes.

The watcher folds LEVEL records into books and compares each with the market's own book at that moment, so a book that
is wrong for one event only is seen. What it cannot accept it says in `Watcher.wrong`; a test ends with it empty.
"""
import asyncio
import collections
import contextlib
import inspect
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time

import uvloop

import feedhandler
from feedhandler import instance
from feedhandler.counters import Counters
from feedhandler.reader import RECORD_DTYPE
from feedhandler.simulate.market import ASK, BID
from feedhandler.simulate.server import Simulator, SimulatorConfig

VENUES = ("binance-spot", "binance-usdm", "binance-coinm", "okx", "kraken", "deribit")
TRADE, QUOTE, TOUCH, LEVEL, STATUS = 1, 2, 3, 4, 32
GAP, RESYNC, STALE, LIVE, EPOCH, REJECTED = 1, 2, 3, 4, 7, 14
LAST, SNAPSHOT, RESET, GAP_BEFORE = 1, 2, 4, 8
BOOK = 3                    # channel of a STATUS, its detail
DIGITS = 12                 # market and reader meet in integers of 10^-12
NOBODY = (1 << 32) - 1
UNDEFINED = -1 << 63
WAIT_S = 10.0
numbers = iter(range(1_000_000))


class Oracle:
    """The market's book of one instrument, walked forward event by event, in integers of 10^-DIGITS."""

    def __init__(self, market):
        self.market = market
        self.price = 10 ** (DIGITS - market.price_digits)
        self.size = 10 ** (DIGITS - market.size_digits)
        self.position, self.sides = 0, tuple(self.scaled(side) for side in market.book(0))
        self.sequences = [market.sequence(position) - market.sequence_start for position in range(1, len(market.loop) + 1)]
        self.positions = {sequence: position for position, sequence in enumerate(self.sequences, 1)}

    def place(self, position):
        if not 0 <= position - self.position < len(self.market.loop):
            self.sides = tuple(self.scaled(side) for side in self.market.book(position))
            self.position = position
        while self.position < position:
            self.apply(self.market.loop[self.position % len(self.market.loop)].levels, self.sides)
            self.position += 1
        return self.sides

    def scaled(self, side):
        return {price * self.price: size * self.size for price, size in side.items()}

    def apply(self, levels, sides):
        for side, price, size in levels:
            if size:
                sides[side][price * self.price] = size * self.size
            else:
                sides[side].pop(price * self.price, None)

    def position_of(self, sequence):
        """The position after the event with this last update id, or None."""
        cycle, inside = divmod(sequence - self.market.sequence_start, self.market.span)
        if inside == 0:
            return cycle * len(self.market.loop)
        at = self.positions.get(inside)
        return None if at is None else cycle * len(self.market.loop) + at

    def within(self, sequence):
        """The book of a REST snapshot that ends inside an event, or None."""
        for position, extra, last in list(self.market.snapshots):
            if last == sequence and extra:
                sides = tuple(dict(side) for side in self.place(position))
                self.apply(self.market.loop[position % len(self.market.loop)].levels[:extra], sides)
                return position, sides
        return None


class Seen:
    """What a reader knows of one instrument, and how it came to know it."""

    def __init__(self, watcher, instrument, market):
        self.watcher, self.instrument, self.market = watcher, instrument, market
        self.oracle = Oracle(market)
        self.sides, self.phase, self.position, self.event_open = ({}, {}), "NEW", -1, False
        self.story = []              # GAP, RESYNC, LIVE, STALE, REJECTED of any channel, and RESET
        self.events = self.gaps = self.resets = 0
        self.trade_next, self.trades, self.trade_holes, self.trade_loss_expected = None, 0, 0, False
        self.trade_gaps = 0          # that were announced
        self.trade_gap_told = False  # since the last trade
        self.touches = {tuple(self.level(event.touch)) for event in market.loop}
        self.touch = None

    def level(self, touch):
        for index, value in enumerate(touch):
            yield value * (self.oracle.size if index & 1 else self.oracle.price)

    def bad(self, text):
        self.watcher.wrong.append(f"{self.market.venue} {self.market.symbol}: {text}")

    def status(self, code, detail, session):
        name = {GAP: "GAP", RESYNC: "RESYNC", STALE: "STALE", LIVE: "LIVE", REJECTED: "REJECTED"}.get(code)
        if name is None:
            return
        if detail != BOOK:
            self.trade_gaps += detail == 0 and code == GAP
            self.trade_gap_told |= detail == 0 and code == GAP
            return
        self.story.append(name)
        if code == GAP:
            self.phase, self.gaps, self.event_open = "GAP", self.gaps + 1, False

    def book_level(self, flags, price, size, sequence, side):
        if flags & RESET:
            self.sides, self.phase = ({}, {}), "LIVE"
            self.resets += 1
            self.story.append("RESET")
        elif self.phase != "LIVE":
            self.bad(f"a change is published while the book is in {self.phase}")
            return
        if price is not None:
            if size:
                self.sides[side - 1][price] = size
            else:
                self.sides[side - 1].pop(price, None)
        if flags & LAST:
            self.whole(sequence, self.watcher.reset_of_event(flags, self))

    def whole(self, sequence, reset):
        """The event is complete: the book must be the market's at this very moment, and later than the one before."""
        self.events += 1
        if self.market.venue == "kraken":
            position = self.search()
        else:
            position = self.oracle.position_of(sequence)
            inside = self.oracle.within(sequence) if position is None else None
            if inside is not None:
                position = inside[0]
                if self.sides != inside[1]:
                    self.bad(f"the book at {sequence}, inside event {position}, is not the snapshot's")
                self.position = position
                return
            if position is not None and self.oracle.place(position) != self.sides:
                self.bad(f"the book at {sequence}, position {position}, is not the market's")
        if position is None:
            self.bad(f"the book at {sequence} is none the market had")
        elif position <= self.position and not reset:
            self.bad(f"position {position} comes after {self.position}")
        else:
            self.position = position

    def search(self):
        """Without sequence numbers: the next moment at which the market's book was this one."""
        start = max(self.position, 0)
        for position in range(start, self.market.position + 1):
            if self.oracle.place(position) == self.sides:
                return position
        return None

    def best(self):
        (bids, asks) = self.sides
        bid, ask = max(bids, default=None), min(asks, default=None)
        return bid, bids.get(bid), ask, asks.get(ask)

    def trade(self, number, flags):
        """Trades are numbered without holes here: a missing one must have been told, and none comes twice."""
        self.trades += 1
        if self.trade_next is not None and number < self.trade_next:
            self.bad(f"trade {number} comes after {self.trade_next - 1}")
        if self.trade_next is not None and number > self.trade_next:
            self.trade_holes += 1
            if not self.trade_gap_told and not flags & GAP_BEFORE and not self.trade_loss_expected:
                self.bad(f"trade {number} comes after {self.trade_next - 1}, and no gap was told")
        self.trade_gap_told = False
        self.trade_next = number + 1


class Watcher:
    """Reads a feed to its end again and again, and checks what it reads."""

    def __init__(self, feed, simulator, ignore=()):
        self.feed = feed
        self.wrong = []
        self.records = 0
        self.ignore = set(ignore)
        self.exponents = {}
        self.seen, self.by_id = {}, {}
        self.whole_ring = []          # STATUS records of no instrument: (code, detail, a)
        self.open_reset = set()
        self.simulator = simulator
        self.meet()

    def meet(self):
        """Take over instruments that were listed since the last look."""
        for instrument in self.feed.instruments:
            if instrument.id in self.by_id:
                continue
            market = self.simulator.sides[instrument.venue].instruments[instrument.symbol]
            seen = Seen(self, instrument, market)
            self.seen[instrument.venue, instrument.symbol] = self.by_id[instrument.id] = seen
            self.exponents[instrument.id] = tuple(round(math.log10(scale[instrument.id])) for scale in (self.feed.price_scale, self.feed.size_scale))

    def reset_of_event(self, flags, seen):
        was = seen in self.open_reset
        self.open_reset.discard(seen)
        return was or bool(flags & RESET)

    def look(self, timeout=0.05):
        """Take what is there, or wait a little for more."""
        batch = self.feed.poll(timeout=timeout)
        if batch.lost:
            self.wrong.append(f"the reader lost {batch.lost} records")
        for record in batch.records.view(RECORD_DTYPE).tolist():
            self.take(*record)
        self.records += len(batch)
        return len(batch)

    def take(self, position, recv_ns, event_ns, instrument, kind, flags, session, word):
        if instrument == NOBODY:
            if kind == STATUS:
                self.whole_ring.append((word[0] & 0xffffffff, word[0] >> 32, word[1]))
            return
        if instrument not in self.by_id:
            self.meet()
        seen = self.by_id.get(instrument)
        if seen is None or kind == 0:
            return
        if kind == STATUS:
            code, detail = word[0] & 0xffffffff, word[0] >> 32
            if code == 12:           # INSTRUMENT_CHANGED
                self.exponents[instrument] = word[1], word[2]
            seen.status(code, detail, session)
            return
        price_exponent, size_exponent = self.exponents[instrument]
        price_scale, size_scale = 10 ** (DIGITS + price_exponent), 10 ** (DIGITS + size_exponent)
        if kind == LEVEL:
            if flags & RESET:
                self.open_reset.add(seen)
            price = None if word[0] == UNDEFINED else word[0] * price_scale
            seen.book_level(flags, price, word[1] * size_scale, word[2], word[3] & 0xff)
        elif kind == TOUCH:
            touch = word[0] * price_scale, word[1] * size_scale, word[2] * price_scale, word[3] * size_scale
            if seen.phase == "LIVE" and touch != seen.best():
                seen.bad(f"the touch {touch} is not the book's {seen.best()}")
        elif kind == TRADE:
            if not (seen.market.venue.startswith("binance") and word[3] >> 8 & 0xff):     # its aggregates have numbers of their own
                seen.trade(word[2], flags)
        elif kind == QUOTE:
            touch = word[0] * price_scale, word[1] * size_scale, word[2] * price_scale, word[3] * size_scale
            if touch not in seen.touches and tuple(self.initial(seen)) != touch:
                seen.bad(f"the quote {touch} is none the market had")

    @staticmethod
    def initial(seen):
        bids, asks = seen.market.initial[BID], seen.market.initial[ASK]
        bid, ask = max(bids), min(asks)
        return seen.level((bid, bids[bid], ask, asks[ask]))

    def within(self, condition, seconds):
        """Read until the condition holds or the time is over; whether it holds."""
        deadline = time.monotonic() + seconds
        while not condition() and time.monotonic() < deadline:
            self.look()
        return condition()

    def until(self, condition, what, seconds=WAIT_S):
        """Read until the condition holds; fails with what was waited for, and with anything wrong that was read."""
        deadline = time.monotonic() + seconds
        while not condition():
            self.look()
            if self.wrong:
                raise AssertionError(self.wrong[:5])
            if time.monotonic() > deadline:
                ended = [task.exception() for task in self.simulator.tasks if task.done()]
                raise AssertionError(f"not within {seconds:g} s: {what() if callable(what) else what}; simulator's ended tasks: {ended}")

    def advance(self, events=3, seconds=WAIT_S, but=()):
        """Read until every live book has moved on by some events."""
        marks = {seen: seen.events + events for seen in self.seen.values() if seen.phase == "LIVE" and seen not in but}
        self.until(lambda: all(seen.events >= mark for seen, mark in marks.items() if seen.phase == "LIVE"),
                   lambda: [seen.market.symbol for seen, mark in marks.items() if seen.events < mark], seconds)

    def counts(self, but=()):
        """What a disturbance would change, of every instrument not in `but`."""
        return {key: (seen.gaps, seen.resets, seen.trade_holes, seen.trade_gaps)
                for key, seen in self.seen.items() if seen not in but}


class Place:
    """Simulator and instance together. Simulator methods are called in its thread through call() and fault()."""

    def __init__(self, venues=VENUES, config=None, prepare=None, ready=True, cli_timeout=60, **fields):
        self.name = f"test-{os.getpid()}-{next(numbers)}"
        self.venues, self.edit, self.prepare, self.wait_ready = venues, config, prepare, ready
        self.fields = {"instruments": 8, "rate": 1000, **fields}
        self.loop, self.started, self.ended = None, threading.Event(), None

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            self.folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="feedhandler-test-")))
            self.environment = {**os.environ, "XDG_STATE_HOME": str(self.folder), "PYTHONPATH": os.pathsep.join(
                [str(pathlib.Path(__file__).resolve().parent.parent), os.environ.get("PYTHONPATH", "")])}
            self.thread = threading.Thread(target=self.simulate, daemon=True)
            self.thread.start()
            stack.callback(self.stop_simulator)
            assert self.started.wait(WAIT_S), "the simulator did not start"
            text = self.simulator.feedhandler_config(self.name)
            (self.folder / "config.toml").write_text(self.edit(text, self.simulator) if self.edit else text)
            self.start(stack)
            self.stack = stack.pop_all()
        return self

    def start(self, stack):
        """Start the instance and attach before its first subscription: it has to wait for the instrument lists until then."""
        words = [sys.executable, "-m", "feedhandler", "start", "-n", self.name, "-c", str(self.folder / "config.toml")]
        with open(self.folder / "start.log", "w+") as log:
            starting = subprocess.Popen(words, env=self.environment, stdout=log, stderr=log)
            stack.callback(starting.wait)
            stack.callback(self.command, "stop", "-n", self.name)
            deadline = time.monotonic() + WAIT_S
            while not self.attach(stack):
                log.seek(0)
                assert starting.poll() is None and time.monotonic() < deadline, log.read()
                time.sleep(0.01)
            self.call(self.listed.set)
            self.watcher = Watcher(self.feed, self.simulator)
            while self.wait_ready and starting.poll() is None:
                self.watcher.look()
            log.seek(0)
            assert not self.wait_ready or starting.returncode in (0, 4), log.read()

    def attach(self, stack):
        if not os.path.exists(f"{instance.directory(self.name)}/worker-0.ring"):
            return False
        try:
            self.feed = feedhandler.attach(self.name, reader_name="watcher")
        except feedhandler.FeedError:
            return False
        stack.callback(self.feed.close)
        return True

    def hold_lists(self, side):
        """REST answers nothing until the watcher is attached."""
        answer = side.rest

        async def rest(path, query, now):
            await self.listed.wait()
            reply = answer(path, query, now)
            return await reply if inspect.isawaitable(reply) else reply
        side.rest = rest

    def __exit__(self, *error):
        self.stack.close()

    def simulate(self):
        async def life():
            self.simulator, self.ended = Simulator(SimulatorConfig(venues=self.venues, **self.fields)), asyncio.Event()
            await self.simulator.start()
            self.listed = asyncio.Event()
            for side in self.simulator.sides.values():
                self.hold_lists(side)
            if self.prepare:
                self.prepare(self.simulator)
            self.loop = asyncio.get_running_loop()
            self.started.set()
            await self.ended.wait()
            await self.simulator.stop()
        uvloop.run(life())

    def stop_simulator(self):
        if self.loop is not None:
            self.loop.call_soon_threadsafe(self.ended.set)
        self.thread.join(WAIT_S)
        assert not self.thread.is_alive(), "the simulator did not stop"

    def call(self, function, *arguments, **fields):
        """Run a function in the simulator's loop and answer its result."""
        async def step():
            return function(*arguments, **fields)
        return asyncio.run_coroutine_threadsafe(step(), self.loop).result(WAIT_S)

    def run(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(WAIT_S)

    def fault(self, kind, **fields):
        return self.call(self.simulator.faults.add, kind, **fields)

    def command(self, *words):
        return subprocess.run([sys.executable, "-m", "feedhandler", *words], env=self.environment, capture_output=True, text=True, timeout=90)

    def document(self, *words):
        """What a verb answers with --json; the instance may be degraded."""
        done = self.command(*words, "-n", self.name, "--json")
        assert done.returncode in (0, 4), f"{words}: {done.stdout}{done.stderr}"
        return json.loads(done.stdout)

    def streams(self):
        return {(row["venue"], row["symbol"], row["channel"]): row for row in self.document("subs", "list")["streams"]}

    def counter(self, name):
        return self.counters().values()[name]

    def counters(self):
        return Counters(instance.directory(self.name), 0)

    def sessions(self, venue):
        """Rows of the venue's connections in the worker's table."""
        return [row for row in self.counters().sessions() if row["venue"] == venue]

    def until_streams(self, condition, what, seconds=WAIT_S):
        """Ask for the streams' states until the condition on them holds, reading on meanwhile."""
        deadline = time.monotonic() + seconds
        while not condition(streams := self.streams()):
            self.watcher.look(0.1)
            assert not self.watcher.wrong, self.watcher.wrong[:5]
            states = collections.Counter((row["state"], row["reason"]) for row in streams.values())
            assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}: {dict(states)}"
        return streams

    def until_all_live(self, seconds=WAIT_S):
        def live(streams):
            return all(row["state"] == "LIVE" for row in streams.values())
        return self.until_streams(live, "every stream is LIVE", seconds)

    def usage(self):
        """Every limit's highest use, as a share of it."""
        return {name: row["ratio"] for name, row in self.call(self.simulator.usage.document).items() if row["hits"]}


def within_budgets(usage, share=0.8):
    return {name: ratio for name, ratio in usage.items() if ratio > share}
