"""Two worker processes, one venue, a reader: streams move between connections and workers while trades and books flow."""
import asyncio
import contextlib
import itertools
import json
import os
import signal

import feedhandler
from feedhandler import control
from feedhandler.supervisor import tables
from feedhandler.worker.worker import WorkerOptions
from test_worker import ROWS, Supervisor, Venue, gone, launcher, plan, run, stream_plan
from wssupport import TEXT, book, frame, serving, trade

TRADES, BOOK = "trades.BTC-PERPETUAL.100ms", "book.BTC-PERPETUAL.100ms"
TICK_S = 0.002
RESET = 4
numbers = itertools.count()


class Market(Venue):
    """One market for all connections: a trade and a book change every TICK_S; a new book subscriber gets the book of now."""

    def __init__(self):
        super().__init__()
        self.trade, self.change = 0, 1
        self.silent = set()          # writers that are acknowledged and get nothing
        self.deaf = False            # whether new connections are such

    def answer(self, writer, message):
        channels = message["params"].get("channels", [])
        self.seen.append((message["method"], channels))
        if message["method"] == "public/subscribe":
            self.clients[writer] |= set() if self.deaf else set(channels)
        elif message["method"] == "public/unsubscribe":
            self.clients[writer] -= set(channels)
        result = channels if channels else "ok"
        writer.write(frame(TEXT, json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}).encode()))
        if BOOK in self.clients[writer] and BOOK in channels:
            writer.write(frame(TEXT, book(self.change, bids=[("new", 100.0, float(self.change))])))

    def feed(self, channel, *payloads):
        """As of Venue; a client that was killed just now gets nothing."""
        for writer, channels in self.clients.items():
            if channel in channels and not writer.transport.is_closing():
                writer.write(b"".join(frame(TEXT, payload) for payload in payloads))

    async def flow(self):
        while True:
            self.trade += 1
            self.change += 1
            self.feed(TRADES, trade(self.trade))
            self.feed(BOOK, book(self.change, self.change - 1, bids=[("change", 100.0, float(self.change))], asks=[]))
            await asyncio.sleep(TICK_S)


class Strategy:
    """Reads everything, and knows what it must be."""

    def __init__(self, directory):
        self.feed = feedhandler.attach("moves", reader_name="moves", directory=str(directory))
        self.trades, self.codes, self.books, self.workers = [], [], [], []

    def read(self):
        for record in self.feed.records(timeout=0):
            if record.kind == "trade":
                self.trades.append(record.trade_id)
            elif record.kind == "level" and record.side == "bid":
                self.books.append((record.sequence, bool(record.flags & RESET), int(record.size)))
            elif record.kind == "status":
                self.codes.append(record.code)

    async def until_trades(self, more):
        self.read()
        target = len(self.trades) + more
        async with asyncio.timeout(20):
            while len(self.trades) < target:
                await asyncio.sleep(TICK_S)
                self.read()

    def check(self, resets=1):
        """Each trade once and in order; one snapshot, then each change once; no gap; the size at 100 is the change's number."""
        self.read()
        assert self.trades == list(range(self.trades[0], self.trades[-1] + 1))
        assert "GAP" not in self.codes
        assert sum(reset for _, reset, _ in self.books) <= resets
        changes = [sequence for sequence, _, size in self.books if size == sequence]
        assert changes == list(range(changes[0], changes[-1] + 1)), "each change once"


@contextlib.asynccontextmanager
async def place(directory, workers=2, **chosen):
    """(market, url, supervisors of each worker, pids, strategy, fork) with the market flowing."""
    dir_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    tables.create(dir_fd, 64, 1)
    table = tables.Instruments(dir_fd)
    os.close(dir_fd)
    for row in ROWS:
        table.put(row.id, "perpetual", -1, 0, 0, 1, 1, 1, 0, False, 0, tables.UNDEFINED, "deribit", row.symbol, row.symbol)
    market = Market()
    async with launcher() as made, serving(market.serve) as url, contextlib.AsyncExitStack() as stack:
        pids, supervisors = [], []
        for number in range(workers):
            options = WorkerOptions(str(directory), f"test-{os.getpid()}-m{next(numbers)}", number, slot_count=1 << 16, row_max=64, level_max=100, **chosen)
            pids.append(await made.fork(options))
            supervisors.append(await stack.enter_async_context(Supervisor(options.socket_path)))
            await supervisors[-1].until(lambda: supervisors[-1].told)
        flow = asyncio.create_task(market.flow())
        strategy = Strategy(directory)
        try:
            yield market, url, supervisors, pids, strategy
        finally:
            strategy.feed.close()
            table.close()
            flow.cancel()


def owned(url, id=1, role="", backed=False, streams=((10, 1, "book"), (11, 1, "trade"))):
    found = plan(url, *streams, id=id)
    for stream in found.streams:
        stream.role, stream.backed = role, backed
    return found


async def live(supervisor, *ids, state="LIVE"):
    await supervisor.until(lambda: all(id in supervisor.streams and supervisor.streams[id].state == state for id in ids))


# -- between connections --------------------------------------------------------------------------------------

def test_streams_move_to_another_connection_and_the_first_lets_go_only_then(tmp_path):
    async def go():
        async with place(tmp_path, 1) as (market, url, (supervisor,), pids, strategy):
            supervisor.say(control.Assign(1, ROWS, [owned(url)]))
            await live(supervisor, 10, 11)
            await strategy.until_trades(20)
            for turn in range(2, 12):
                supervisor.say(control.Assign(turn, ROWS, [owned(url, id=turn)]))
                await supervisor.until(lambda: len(supervisor.of(control.Moved)) == 2 * (turn - 1))
                await strategy.until_trades(20)
            assert {(message.stream, message.connection, message.ok) for message in supervisor.of(control.Moved)} == {
                (stream, turn, True) for turn in range(2, 12) for stream in (10, 11)}
            async with asyncio.timeout(10):
                while len(market.clients) > 1:
                    await asyncio.sleep(0.01)
            assert all(state.state == "LIVE" for state in supervisor.streams.values())
            strategy.check()
    run(go())


def test_a_stream_that_comes_back_to_a_connection_it_left_is_heard_there(tmp_path):
    async def go():
        async with place(tmp_path, 1) as (market, url, (supervisor,), pids, strategy):
            here, there, moving = (10, 1, "book"), (20, 2, "book"), (11, 1, "trade")
            supervisor.say(control.Assign(1, ROWS, [owned(url, streams=(here, moving)), owned(url, id=2, streams=(there,))]))
            await live(supervisor, 10, 11)
            await strategy.until_trades(20)
            for turn in range(2, 8):
                back = turn % 2
                supervisor.say(control.Assign(turn, ROWS, [owned(url, streams=(here, moving) if back else (here,)),
                                                           owned(url, id=2, streams=(there,) if back else (there, moving))]))
                await supervisor.until(lambda: len(supervisor.of(control.Moved)) == turn - 1)
                assert supervisor.of(control.Moved)[-1].ok
                await strategy.until_trades(20)
            assert len(market.clients) == 2
            strategy.check()
    run(go())


def test_a_connection_that_stays_silent_takes_nothing_over_and_the_streams_stay_where_they_were(tmp_path):
    async def go():
        async with place(tmp_path, 1, linger_s=1.0) as (market, url, (supervisor,), pids, strategy):
            supervisor.say(control.Assign(1, ROWS, [owned(url)]))
            await live(supervisor, 10, 11)
            market.deaf = True
            supervisor.say(control.Assign(2, ROWS, [owned(url, id=2)]))
            await supervisor.until(lambda: len(supervisor.of(control.Moved)) == 2)
            assert not any(message.ok for message in supervisor.of(control.Moved))
            supervisor.say(control.Assign(3, ROWS, [owned(url)]))
            await strategy.until_trades(100)
            async with asyncio.timeout(10):
                while len(market.clients) > 1:
                    await asyncio.sleep(0.01)
            strategy.check()
    run(go())


def test_the_first_connection_may_die_on_the_way(tmp_path):
    async def go():
        async with place(tmp_path, 1) as (market, url, (supervisor,), pids, strategy):
            supervisor.say(control.Assign(1, ROWS, [owned(url), owned(url, id=2, streams=((20, 1, "book"), (21, 1, "trade")))]))
            await live(supervisor, 10, 11, 20, 21)
            await strategy.until_trades(20)
            next(iter(market.clients)).transport.abort()
            await strategy.until_trades(50)
            strategy.check()
    run(go())


# -- between workers ------------------------------------------------------------------------------------------

async def hand_over(old, new, url, instrument=1, frm=0, to=1, ids=(10, 11), turn=1, connection=1):
    """The supervisor's part of a move. The Ready of the new worker must be awaited first."""
    ready = new.of(control.Ready)[-1]
    old.say(control.LetGo(instrument, to, ready.floors, ready.quiet))
    seen = len(old.of(control.LetGone))
    await old.until(lambda: len(old.of(control.LetGone)) > seen)
    gone_ = old.of(control.LetGone)[-1]
    assert gone_.ok, gone_.reason
    new.say(control.TakeOver(instrument, frm, gone_.handover))
    seen = len(new.of(control.TakenOver))
    await new.until(lambda: len(new.of(control.TakenOver)) > seen)
    assert new.of(control.TakenOver)[-1].ok
    return new.of(control.TakenOver)[-1]


def test_an_instrument_moves_to_another_worker_and_back_and_no_record_is_lost_or_doubled(tmp_path):
    async def go():
        async with place(tmp_path) as (market, url, supervisors, pids, strategy):
            supervisors[0].say(control.Assign(1, ROWS, [owned(url)]))
            await live(supervisors[0], 10, 11)
            await strategy.until_trades(20)
            for turn in range(10):
                frm, to = turn % 2, (turn + 1) % 2
                old, new = supervisors[frm], supervisors[to]
                seen = len(new.of(control.Ready))
                new.say(control.Assign(2 + 2 * turn, ROWS, [owned(url, id=100 + turn, role="incoming")]))
                await new.until(lambda: len(new.of(control.Ready)) > seen)
                taken = await hand_over(old, new, url, frm=frm, to=to)
                assert taken.state == "LIVE"
                new.say(control.Assign(3 + 2 * turn, ROWS, [owned(url, id=100 + turn)]))
                old.say(control.Assign(3 + 2 * turn, ROWS, []))
                await live(new, 10, 11)
                await strategy.until_trades(30)
            assert strategy.codes.count("MOVED_IN") == strategy.codes.count("MOVED_OUT") == 10
            strategy.check()
    run(go())


def test_an_instrument_that_was_let_go_can_be_taken_back(tmp_path):
    async def go():
        async with place(tmp_path) as (market, url, supervisors, pids, strategy):
            old, new = supervisors
            old.say(control.Assign(1, ROWS, [owned(url)]))
            await live(old, 10, 11)
            new.say(control.Assign(2, ROWS, [owned(url, id=100, role="incoming")]))
            await new.until(lambda: new.of(control.Ready))
            ready = new.of(control.Ready)[-1]
            old.say(control.LetGo(1, 1, ready.floors, ready.quiet))
            await old.until(lambda: old.of(control.LetGone))
            os.kill(pids[1], signal.SIGKILL)
            await gone(pids[1])
            await asyncio.sleep(20 * TICK_S)
            old.say(control.TakeOver(1, 1, old.of(control.LetGone)[0].handover))
            await old.until(lambda: old.of(control.TakenOver))
            await live(old, 10, 11)
            await strategy.until_trades(50)
            strategy.check()
    run(go())


def test_a_worker_with_a_standby_is_killed_and_nothing_is_lost_or_doubled(tmp_path):
    async def go():
        async with place(tmp_path) as (market, url, supervisors, pids, strategy):
            owner, standby = supervisors
            owner.say(control.Assign(1, ROWS, [owned(url, backed=True)]))
            standby.say(control.Assign(1, ROWS, [owned(url, id=200, role="standby", streams=((30, 1, "book"), (31, 1, "trade")))]))
            await live(owner, 10, 11)
            await standby.until(lambda: standby.of(control.Ready))
            await live(standby, 30, 31, state="HELD")
            await strategy.until_trades(100)
            os.kill(pids[0], signal.SIGKILL)
            await gone(pids[0])
            standby.say(control.TakeOver(1, 0, None))
            await standby.until(lambda: standby.of(control.TakenOver))
            taken, = standby.of(control.TakenOver)
            print(f"taken over within {taken.after_ns / 1e6:.1f} ms")
            assert (taken.ok, taken.state) == (True, "LIVE")
            standby.say(control.Assign(2, ROWS, [owned(url, id=200)]))
            await live(standby, 10, 11)
            await strategy.until_trades(100)
            strategy.check(resets=2)
            assert not [entry for entry in market.seen if "unsub" in entry[0]], "the standby's subscriptions became the owner's"
    run(go())


def test_a_worker_refuses_to_let_go_of_what_the_other_side_has_not(tmp_path):
    async def go():
        async with place(tmp_path) as (market, url, supervisors, pids, strategy):
            old, _ = supervisors
            old.say(control.Assign(1, ROWS, [owned(url)]))
            await live(old, 10, 11)
            old.say(control.LetGo(1, 1, {"trade": 10**9}, [], 0.1))
            await old.until(lambda: old.of(control.LetGone))
            old.say(control.LetGo(1, 1, {}, ["trade"]))
            await old.until(lambda: len(old.of(control.LetGone)) == 2)
            first, second = old.of(control.LetGone)
            assert not first.ok and "did not reach" in first.reason
            assert not second.ok and "no data of trade" in second.reason
            await strategy.until_trades(20)
            strategy.check()
    run(go())


def test_two_lines_that_change_places_go_on_each_as_the_other(tmp_path):
    async def go():
        async with place(tmp_path, 1) as (market, url, (supervisor,), pids, strategy):
            first, second = ((10, 1, "book"), (11, 1, "trade")), ((20, 1, "book"), (21, 1, "trade"))
            supervisor.say(control.Assign(1, ROWS, [owned(url, streams=first), owned(url, id=2, streams=second)]))
            await live(supervisor, 10, 11, 20, 21)
            supervisor.say(control.Assign(2, ROWS, [owned(url, streams=second), owned(url, id=2, streams=first)]))
            await supervisor.until(lambda: len(supervisor.of(control.Moved)) == 4)
            await strategy.until_trades(50)
            strategy.check()
            assert not [entry for entry in market.seen if "unsub" in entry[0]]
    run(go())
