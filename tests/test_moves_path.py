"""Streams move between connections and workers, lines and workers die, connections roll over: nothing is lost or doubled.

    three simulated venues (TLS) → two workers, lines and standbys → rings → readers in Python, numpy and C

What: operations and faults in random order while trades, quotes and books flow.
Why:  this is what the product promises. Sizes: SMALL, and with --long FULL: 2,007 streams, 100 operations, 20,000 messages/s.
A failure means that a strategy saw a hole, a double or a wrong book, and names the operation before it.
"""
import collections
import decimal
import json
import os
import random
import subprocess
import sys
import time

import pytest

import crash_support
import csupport
from crash_support import GAP, Simulated, Witness
from feedhandler import instance
from feedhandler.supervisor import client
from test_path import FOLDER, Reader

VENUES = ("okx", "deribit", "binance-usdm")
LINES_AT = "okx"                 # the venue whose streams have two lines
SMALL, FULL = (20, 15, 2_000), (223, 100, 20_000)   # symbols of a venue (× 3 channels × 3 venues), operations, messages a second of the market
COPIES = 7 / 3                   # of each message: owner and standby everywhere, and a second line at one of three venues
MOVED_OUT, MOVED_IN = 10, 11


class Follower(Witness):
    """A witness across rings: an instrument's records come from one ring at a time, and nothing excuses a hole."""

    def __init__(self, name, market):
        super().__init__(name, market)
        self.moves, self.quotes = collections.Counter(), {}
        self.out = {}                # instrument → the worker it was told to go to

    def interrupted(self, known):
        """Its standby goes on: what comes from the same ring without MOVED_IN must begin with a GAP."""
        known.owed = set(known.seen)

    def status(self, ring, instrument, flags, body):
        code = body[0] & 0xffffffff
        assert code != GAP, f"a gap of {self.feed.instrument_at(instrument).symbol}, channel {body[0] >> 32}"
        if code == MOVED_OUT:
            self.out[instrument] = body[2]
        elif code == MOVED_IN:
            known = self.of(instrument, ring)
            known.owed = set()
            self.moves[instrument] += 1
        super().status(ring, instrument, flags, body)

    def quote(self, known, event):
        """The path of the best prices, each step once: where its values repeat, every place they may stand for is followed."""
        super().quote(known, event)
        path = known.sim.__dict__.setdefault("quote_path", [one.touch for one in known.sim.loop if one.touch_moved])
        (_, _, _, (bid, bid_size, ask, ask_size)), = event
        value = known.price(bid), known.size(bid_size), known.price(ask), known.size(ask_size)
        before = self.quotes.get(event[0][0])
        if before is None:
            self.quotes[event[0][0]] = {at for at, touch in enumerate(path) if touch == value}
            return
        places = {(at + 1) % len(path) for at in before if path[(at + 1) % len(path)] == value}
        assert places, f"quotes of {known.sim.symbol}: one is missing or doubled"
        self.quotes[event[0][0]] = places

    def at_end(self, positions):
        """Every instrument is at the market's end: last trade, whole book."""
        for instrument, known in self.known.items():
            sim, position = known.sim, positions[known.sim.venue, known.sim.symbol]
            loops, index = divmod(position, len(sim.loop))
            last = sim.trade_start + loops * sim.trades_per_loop + sum(event.trade is not None for event in sim.loop[:index]) - 1
            assert known.trade_id == last, f"{sim.venue} {sim.symbol}: the last trade is {known.trade_id}, sent was {last}"
            if known.book is not None:   # a reset came since we attached
                assert [known.book[1], known.book[2]] == list(sim.book(position)), f"the final book of {sim.venue} {sim.symbol}"
            book = self.feed.book(instrument)
            for levels, side in zip((book.bids, book.asks), sim.best_first(position, 20)):
                assert [list(map(decimal.Decimal, (sim.price_text(price), sim.size_text(size)))) for price, size in side] == [list(level) for level in levels], \
                    f"the last book of {sim.venue} {sim.symbol} in state"


class Chaos:
    """Operations and faults on a living instance, each told when it begins and when it has ended."""

    def __init__(self, simulated, name, path, follower, seed):
        self.simulated, self.name, self.path, self.follower, self.random = simulated, name, path, follower, random.Random(seed)
        self.done, self.kills = collections.Counter(), 0
        self.total = self.ask("status")["streams"]["total"]      # with second lines and standbys

    def ask(self, verb, **arguments):
        return client.request(self.name, verb, arguments, 30.0)

    def until(self, condition, what, seconds=60.0):
        """Wait while the market is read: a reader that sleeps is lapped. The condition is looked at ten times a second."""
        end, look = time.monotonic() + seconds, 0.0
        while True:
            self.follower.poll(0.01)
            if time.monotonic() >= look:
                if condition():
                    return
                look = time.monotonic() + 0.1
            assert time.monotonic() < end, f"not within {seconds:g} s: {what}\n{json.dumps(self.ask('moves'))[:3000]}\n{self.ask('status')['reasons'][:10]}"

    def settled(self):
        """Nothing is in flight, every line and standby is there again and has data, and could take over."""
        counts = self.ask("status")["streams"]
        if counts["total"] != self.total or counts.get("live", 0) + counts.get("held", 0) < self.total:
            return False
        found = self.ask("moves")        # last: a standby is ready only after all of it is held
        return not found["in_flight"] and not found["waiting"] and found["standbys"]["ready"] == found["standbys"]["total"]

    def job(self, number, allowed=()):
        """Until it is done. allowed: reasons for which its moves may be refused."""
        def over():
            job = next(job for job in self.ask("moves")["jobs"] if job["id"] == number)
            assert job["state"] != "failed" or (job["problems"] and all(any(reason in problem for reason in allowed) for problem in job["problems"])), job
            return job["state"] != "running"
        self.until(over, f"job {number}")

    def step(self, kind):
        self.done[kind] += 1
        getattr(self, kind)()

    def command(self, *words):
        """A command, while the market is read."""
        process = subprocess.Popen([sys.executable, "-m", "feedhandler", *words], env=self.simulated.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.until(lambda: process.poll() is not None, " ".join(words), 120.0)
        said = process.communicate()[0]
        assert process.returncode == 0, said

    def rows(self):
        return [row for row in self.ask("subs")["streams"]]

    def move_instruments(self):
        self.job(self.move_begun())

    def move_begun(self):
        rows = [row for row in self.rows() if row["state"] == "LIVE"]
        chosen = self.random.choice(rows)
        symbols = list({row["symbol"] for row in rows if row["venue"] == chosen["venue"] and row["worker"] == chosen["worker"]})
        return self.ask("subs move", venue=chosen["venue"], symbols=self.random.sample(symbols, min(8, len(symbols))),
                        to_worker=1 - chosen["worker"])["job"]

    def move_streams(self):
        """To another connection of the same worker, if it has one with room."""
        conns = [row for row in self.ask("conns")["connections"] if row["state"] == "UP"]
        source = self.random.choice(conns)
        same = [row for row in conns if row["id"] != source["id"] and all(row[key] == source[key] for key in ("venue", "endpoint", "worker", "line"))
                and (row["slots"] is None or row["streams"] < row["slots"] - 5)]
        rows = [row for row in self.rows() if row["connection"] == source["id"] and not row["standby"]]
        if not same or not rows or source["line"] != 0:
            return
        channel = rows[0]["channel"]
        symbols = [row["symbol"] for row in rows if row["channel"] == channel][:5]
        self.job(self.ask("subs move", venue=source["venue"], symbols=symbols, channels=[channel], to_connection=same[0]["id"])["job"],
                 # It has room for few books, or the venue announced its end: then they may be on the one that follows it.
                 allowed=("is full", "is there already"))

    def rebalance(self):
        number = self.ask("rebalance")["job"]
        self.job(number)

    def drain(self):
        worker = self.random.randrange(2)
        self.job(self.ask("drain", worker=worker)["job"])
        self.ask("drain", worker=worker, undo=True)
        self.until(self.settled, "standbys after a drain")

    def kill_line(self):
        """A connection of the venue whose streams have two lines is cut; its other line goes on."""
        self.until(self.settled, "both lines before one is cut")
        before = self.made()
        self.simulated.ask("fault", kind="disconnect", venue=LINES_AT, count=1)
        self.until(lambda: self.made() != before, "the cut is seen")

    def made(self):
        """Which connections of that venue there are, how often each was made, and whether it is up."""
        return {row["id"]: (row["state"], row["reconnects"]) for row in self.ask("conns")["connections"] if row["venue"] == LINES_AT}

    def roll_over(self):
        """A venue says that it will close its connections; each is replaced before."""
        self.simulated.ask("fault", kind="notice", venue=self.random.choice(VENUES), count=1)

    def kill_worker(self):
        self.until(self.settled, "standbys before a worker is killed")
        rows = self.ask("status")["workers"]
        victim = self.random.choice([row for row in rows if row["state"] == "UP"])
        os.kill(victim["pid"], 9)
        self.kills += 1
        self.until(lambda: self.ask("status")["workers"][victim["worker"]]["restarts"] > victim["restarts"], "a successor")
        self.until(self.settled, "standbys after a worker was killed")

    def kill_supervisor(self):
        """In the middle of moves; the next one goes on with them."""
        number, end = self.move_begun(), time.monotonic() + 0.5 * self.random.random()
        while time.monotonic() < end:
            self.follower.poll(0.01)
        os.kill(instance.manifest_read(self.name)["supervisor"]["pid"], 9)
        self.until(lambda: not instance.locked(self.name), "the lock falls with its holder")
        self.command("start", "-c", self.path)
        self.job(number)
        self.until(self.settled, "standbys after a supervisor was killed", 30.0)

    def restart_rolling(self):
        """Every process is replaced."""
        self.until(self.settled, "standbys before a rolling restart")
        before = {row["pid"] for row in instance.manifest_read(self.name)["workers"]}
        self.command("restart", "--rolling", "-n", self.name)
        self.until(lambda: not before & {row["pid"] for row in instance.manifest_read(self.name)["workers"]}, "new workers")
        self.until(self.settled, "standbys after a rolling restart")

    def resize(self):
        """A worker more, and again one less."""
        text = open(self.path).read()
        for workers in (3, 2):
            with open(self.path, "w") as file:
                file.write(text.replace("workers = 2", f"workers = {workers}"))
            self.command("reload", "-n", self.name)
            self.until(lambda: len(self.ask("status")["workers"]) == workers and all(row["state"] == "UP" for row in self.ask("status")["workers"]), f"{workers} workers")
            self.rebalance()
            self.until(self.settled, f"standbys with {workers} workers")


def configuration(simulated, name):
    text = open(simulated.write(name, workers=2, slots=1 << 20)).read()
    text = text.replace("max = 64", "max = 1024").replace("[ring]", "ready_timeout_s = 120\n[ring]") + "[load]\nstreams_per_worker = 20000\n"
    for venue in VENUES:
        lines = "\nlines = 2" if venue == LINES_AT else ""
        text = text.replace(f'[[subscribe]]\nvenue = "{venue}"', f'[[subscribe]]\nstandby = true{lines}\nvenue = "{venue}"')
    path = simulated.folder / f"{name}.toml"
    path.write_text(text)
    return str(path)


def kinds(count, rng):
    """The operations, in random order: every kind, those that take longest less often."""
    weights = {"move_instruments": 25, "move_streams": 15, "rebalance": 10, "roll_over": 15, "kill_line": 15, "drain": 6, "kill_worker": 7,
               "kill_supervisor": 5, "restart_rolling": 2, "resize": 2}
    found = [kind for kind, weight in weights.items() for _ in range(max(1, count * weight // 100))]
    rng.shuffle(found)
    return found[:count]


@pytest.mark.timeout(300)
def test_moves_and_deaths_while_data_flows_lose_and_double_nothing(tmp_path):
    run_chaos(tmp_path, *SMALL)


@pytest.mark.timeout(1800)
def test_a_hundred_moves_and_deaths_under_two_thousand_streams_lose_and_double_nothing(tmp_path, request):
    if not request.config.getoption("--long"):
        pytest.skip("takes many minutes: run with --long")
    run_chaos(tmp_path, *FULL)


def run_chaos(folder, symbols, operations, messages_per_s, seed=1):
    simulated = Simulated(folder, venues=VENUES, instruments=symbols, rate=int(messages_per_s * COPIES))
    name = crash_support.new_name()
    path = configuration(simulated, name)
    readers = []
    try:
        done = subprocess.run([sys.executable, "-m", "feedhandler", "start", "-c", path], env=simulated.env, capture_output=True, text=True, timeout=150)
        assert done.returncode == 0, done.stdout + done.stderr
        program = str(csupport.build("moves_reader", ["tests/c/moves_reader.c"], program=True))
        python = (sys.executable, str(FOLDER / "moves_reader.py"))
        with Follower(name, simulated.market()) as follower:
            readers = [Reader(name, simulated.env, command) for command in ((program,), (*python, "records"), (*python, "numpy"))]
            for reader in readers:
                reader.attached()
            chaos = Chaos(simulated, name, path, follower, seed)
            chaos.until(chaos.settled, "all streams and standbys", 120.0)
            begin, records = time.monotonic(), sum(ring.records for ring in follower.rings.values())
            for kind in kinds(operations, chaos.random):
                chaos.step(kind)
            chaos.until(chaos.settled, "all streams and standbys at the end", 120.0)
            seconds = time.monotonic() - begin
            records = sum(ring.records for ring in follower.rings.values()) - records
            positions = stand_still(simulated, follower)
            follower.at_end(positions)
            found = [reader.result() for reader in readers]
        print(f"{sum(chaos.done.values())} operations {dict(chaos.done)} in {seconds:.0f} s, {records:,} records, "
              f"{sum(follower.moves.values())} instruments moved between workers; lost 0, doubled 0")
        compare(found, follower)
    finally:
        for reader in readers:
            if reader.process.poll() is None:
                reader.process.kill()
            reader.process.communicate()
        crash_support.verb("stop", "-n", name, env=simulated.env)
        simulated.close()


def stand_still(simulated, follower):
    """Hold the market, read what is left; {(venue, symbol): events it has published}."""
    simulated.ask("hold?on=1")
    before = None
    while (now := sum(ring.fresh for ring in follower.rings.values())) != before:    # events: a ring's clock goes on
        before = now
        follower.read(0.5)
        simulated.ask("usage")       # an answer comes after what was sent before it
    oracle = simulated.ask("oracle")
    return {(venue, symbol): row["position"] for venue, document in oracle.items() for symbol, row in document["oracle"]["books"].items()}


def compare(found, follower):
    """The three strategies have each trade once, in order, and the follower's last values."""
    for result in found:
        assert result["lost"] == 0
        assert len(result["instruments"]) == len(follower.known)
        for id, one in result["instruments"].items():
            known = follower.known[int(id)]
            assert (one["missing"], one["disordered"], one["fallen"], one["gaps"]) == (0, 0, 0, 0), (id, one)
            assert one["last"] == known.trade_id and one["trades"] == one["last"] - one["first"] + 1
            assert one["moved"] == follower.moves[int(id)]
