"""A worker process from its launcher: a plan comes over its socket, a venue on loopback feeds it, the ring tells."""
import asyncio
import contextlib
import itertools
import json
import os
import signal
import struct
import time

import pytest
import uvloop

from feedhandler import control
from feedhandler.worker.launcher import Launcher, LauncherError
from feedhandler.worker.worker import WorkerOptions
from wssupport import CLOSE, TEXT, book, close, frame, read_frame, serving, trade

TRADE, LEVEL, STATUS = 1, 4, 32
GAP, LIVE = 1, 4
PROFILE = {"client_msg": {"credits": {"cost": 3000, "pool": 30000, "refill_per_s": 10000}}, "sub": {"ack": "per_request"},
           "liveness": {"server_ping": "app", "server_ping_s": 30}}
numbers = itertools.count()


def run(coroutine):
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(asyncio.wait_for(coroutine, 30))


class Venue:
    """A small deribit: answers subscribe and unsubscribe, sends what feed() is given to all that subscribed."""

    def __init__(self):
        self.clients = {}            # writer → channels
        self.seen = []               # (method, channels)
        self.change = 0
        self.connected = 0

    async def serve(self, reader, writer):
        self.connected += 1
        self.clients[writer] = set()
        try:
            while True:
                opcode, payload = await read_frame(reader)
                if opcode == CLOSE:
                    writer.write(frame(CLOSE, payload[:2]))
                    return
                if opcode == TEXT:
                    self.answer(writer, json.loads(payload))
        finally:
            del self.clients[writer]

    def answer(self, writer, message):
        channels = message["params"].get("channels", [])
        self.seen.append((message["method"], channels))
        result = "ok"
        if message["method"] == "public/subscribe":
            result = [channel for channel in channels if "NOWHERE" not in channel]
            self.clients[writer] |= set(result)
        elif message["method"] == "public/unsubscribe":
            self.clients[writer] -= set(channels)
            result = channels
        writer.write(frame(TEXT, json.dumps({"jsonrpc": "2.0", "id": message["id"], "result": result}).encode()))
        for channel in channels if message["method"] == "public/subscribe" else ():
            if channel.startswith("book.") and channel in result:
                symbol = channel.split(".")[1]
                self.change += 10
                writer.write(frame(TEXT, book(self.change, None, symbol)))

    def feed(self, channel, *payloads):
        for writer, channels in self.clients.items():
            if channel in channels:
                writer.write(b"".join(frame(TEXT, payload) for payload in payloads))

    def cut(self, code=1006):
        for writer in list(self.clients):
            if code == 1006:
                writer.transport.abort()
            else:
                writer.write(close(code))


class Supervisor:
    """The other end of a worker's control socket: grants permits, remembers what it is told."""

    def __init__(self, path):
        self.path = path
        self.told = []
        self.streams, self.sessions = {}, {}
        self.news = asyncio.Event()
        self.decoder = control.Decoder(control.FROM_WORKER)
        self.grants = True

    async def __aenter__(self):
        for _ in range(500):
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                self.reader, self.writer = await asyncio.open_unix_connection(self.path)
                break
            await asyncio.sleep(0.01)
        self.task = asyncio.create_task(self.listen())
        return self

    async def __aexit__(self, *error):
        self.writer.close()
        await self.task

    async def listen(self):
        with contextlib.suppress(ConnectionError):
            while data := await self.reader.read(65536):
                for message in self.decoder.feed(data):
                    self.hear(message)
                self.news.set()
        self.news.set()

    def hear(self, message):
        self.told.append(message)
        if isinstance(message, control.WantPermit) and self.grants:
            self.say(control.Permit(message.venue, message.endpoint, message.count, time.monotonic_ns() + 10**10, message.kind))
        if isinstance(message, control.States):
            self.streams.update((state.id, state) for state in message.streams)
            self.sessions.update((state.id, state) for state in message.sessions)

    def say(self, message):
        self.writer.write(control.encode(message))

    async def until(self, what, seconds=10):
        async with asyncio.timeout(seconds):
            while not what():
                self.news.clear()
                await self.news.wait()

    async def until_states(self, **states):
        await self.until(lambda: {id: self.streams[id].state for id in self.streams} ==
                         {int(id[1:]): state for id, state in states.items()})

    def of(self, kind):
        return [message for message in self.told if isinstance(message, kind)]


def plan(url, *streams, id=1, profile=PROFILE):
    """A connection plan; streams are (stream id, channel text) of instruments by their place in SYMBOLS."""
    return control.ConnectionPlan(id, "deribit", "v2", url, [stream_plan(*stream) for stream in streams], profile=profile)


SYMBOLS = ["", "BTC-PERPETUAL", "ETH-PERPETUAL", "NOWHERE-PERPETUAL"]
ROWS = [control.InstrumentRow(i, "deribit", symbol, -1, 0) for i, symbol in enumerate(SYMBOLS) if symbol]


def stream_plan(id, instrument, channel):
    name = "trades" if channel == "trade" else channel
    return control.StreamPlan(id, instrument, "v2", f"{name}.{SYMBOLS[instrument]}.100ms", SYMBOLS[instrument], channel,
                              snapshot="in_band" if channel == "book" else "", first_data_s=5.0 if channel == "book" else 0.0)


def records(directory, worker=0):
    """The ring's committed records in order: (position, instrument, kind, flags, session, body)."""
    data = (directory / f"worker-{worker}.ring").read_bytes()
    start = struct.unpack_from("<I", data, 12)[0]
    found = []
    for at in range(start, len(data) - 63, 64):
        commit, _, _, instrument, kind, flags, session = struct.unpack_from("<QQQIBBH", data, at)
        if commit:
            found.append((commit - 1, instrument, kind, flags, session, data[at + 32:at + 64]))
    return sorted(found)


def status_codes(directory, instrument):
    return [struct.unpack_from("<I", body)[0] for _, of, kind, _, _, body in records(directory) if kind == STATUS and of == instrument]


def sockets_of(pid):
    found = set()
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.add(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return {name for name in found if name.startswith("socket:")}


async def gone(pid, seconds=5):
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:       # the launcher was quicker and has reaped it
        return
    done = asyncio.Event()
    asyncio.get_running_loop().add_reader(fd, done.set)
    try:
        async with asyncio.timeout(seconds):
            await done.wait()
    finally:
        asyncio.get_running_loop().remove_reader(fd)
        os.close(fd)


@contextlib.asynccontextmanager
async def launcher():
    exits = []
    made = await Launcher.start(lambda pid, status: exits.append((pid, status)))
    made.exits = exits
    pids = []
    fork = made.fork

    async def remembered(options):
        pids.append(await fork(options))
        return pids[-1]
    made.fork = remembered
    try:
        yield made
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        await asyncio.sleep(0.02)
        await made.close()


@contextlib.asynccontextmanager
async def instance(directory, **options):
    """A launcher, one worker, its venue and its supervisor."""
    venue = Venue()
    async with launcher() as made, serving(venue.serve) as url:
        config = WorkerOptions(str(directory), f"test-{os.getpid()}-{next(numbers)}", 0, slot_count=4096, row_max=64, level_max=100,
                               **options)
        pid = await made.fork(config)
        async with Supervisor(config.socket_path) as supervisor:
            yield made, pid, config, venue, url, supervisor


async def settled(venue, channel, directory, payloads, count):
    """Feed, and wait until the ring holds this many trades."""
    venue.feed(channel, *payloads)
    for _ in range(300):
        if sum(kind == TRADE for _, _, kind, *_ in records(directory)) >= count:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"{count} trades did not arrive")


# -- the launcher ----------------------------------------------------------------------------------------------

def test_a_worker_is_forked_within_milliseconds_and_says_hello(tmp_path):
    async def go():
        async with launcher() as made:
            times = []
            for n in range(3):
                config = WorkerOptions(str(tmp_path), "test", n, slot_count=1024, row_max=16, level_max=20, generation=7)
                begin = time.monotonic()
                pid = await made.fork(config)
                times.append(time.monotonic() - begin)
                async with Supervisor(config.socket_path) as supervisor:
                    await supervisor.until(lambda: supervisor.told)
                    hello = supervisor.told[0]
                    assert (hello.worker, hello.pid, hello.generation, hello.name) == (n, pid, 0, "test")
                    with open(f"/proc/{pid}/stat") as stat:
                        assert hello.pid_start == int(stat.read().rpartition(")")[2].split()[19])
                    assert os.getsid(pid) == pid != os.getsid(made.pid)
                    theirs, ours = sockets_of(made.pid), sockets_of(pid)
                    assert theirs and not theirs & ours, "the launcher's socket is not inherited"
            return min(times)
    assert run(go()) < 0.1


def test_workers_outlive_their_launcher_and_it_reports_their_ends(tmp_path):
    async def go():
        async with launcher() as made:
            first = await made.fork(WorkerOptions(str(tmp_path), "test", 0, slot_count=1024, row_max=16, level_max=20))
            second = await made.fork(WorkerOptions(str(tmp_path), "test", 1, slot_count=1024, row_max=16, level_max=20))
            os.kill(first, signal.SIGKILL)
            await gone(first)
            for _ in range(200):
                if made.exits:
                    break
                await asyncio.sleep(0.01)
            assert made.exits == [(first, signal.SIGKILL)]
            os.kill(made.pid, signal.SIGKILL)
            await made.process.wait()
            async with Supervisor(str(tmp_path / "worker-1.sock")) as supervisor:
                await supervisor.until(lambda: supervisor.told)
                supervisor.say(control.Stop(0.1))
                await gone(second)
            with pytest.raises(LauncherError, match="gone"):
                await made.fork(WorkerOptions(str(tmp_path), "test", 2))
    run(go())


def test_bad_options_are_refused_in_a_sentence_and_the_launcher_goes_on(tmp_path):
    async def go():
        async with launcher() as made:
            made.writer.write(b'{"options": {"directory": 1, "colour": "blue"}}\n')
            reply = asyncio.get_running_loop().create_future()
            made.replies.append(reply)
            assert "colour" in (await reply)["error"]
            assert await made.fork(WorkerOptions(str(tmp_path), "test", 0, slot_count=1024, row_max=16, level_max=20)) > 0
    run(go())


# -- a worker ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("spin", [False, True])
def test_a_plan_becomes_live_streams_and_records(tmp_path, spin):
    async def go():
        async with instance(tmp_path, spin=spin) as (made, pid, config, venue, url, supervisor):
            supervisor.say(control.Assign(1, ROWS, [plan(url, (10, 1, "book"), (11, 1, "trade"), (12, 3, "book"))]))
            await supervisor.until(lambda: 11 in supervisor.streams and supervisor.streams[11].state == "ACKED")
            await settled(venue, "trades.BTC-PERPETUAL.100ms", tmp_path, [trade(n) for n in range(1, 101)], 100)
            await supervisor.until_states(_10="LIVE", _11="LIVE", _12="REJECTED")
            assert "left" in supervisor.streams[12].reason
            supervisor.say(control.Query())
            await supervisor.until(lambda: any(states.full for states in supervisor.of(control.States)))
            full = next(states for states in supervisor.of(control.States) if states.full)
            assert {state.id: state.messages for state in full.streams}[11] == 100
            assert [(state.state, state.streams, state.streams_live) for state in full.sessions] == [("UP", 3, 2)]
            supervisor.say(control.Stop(2.0))
            await gone(pid)
            await supervisor.until(lambda: supervisor.of(control.Stopped))
        kinds = [kind for _, instrument, kind, *_ in records(tmp_path) if instrument == 1]
        assert kinds.count(TRADE) == 100 and LEVEL in kinds
        assert not os.path.exists(config.socket_path) and venue.seen[0][0] == "public/set_heartbeat"
    run(go())


def test_heartbeats_come_every_ten_milliseconds_or_sooner(tmp_path):
    async def go():
        async with instance(tmp_path) as (made, pid, config, venue, url, supervisor):
            await supervisor.until(lambda: supervisor.told)
            beats = set()
            end = time.monotonic() + 0.5
            path = tmp_path / "worker-0.ring"
            while time.monotonic() < end:
                beats.add(path.read_bytes()[:4096])
                await asyncio.sleep(0.002)
            return len(beats)
    assert run(go()) >= 25       # 0.5 s of 5 ms beats, half of them for a busy machine


def test_a_new_plan_keeps_the_connection_and_touches_only_what_changed(tmp_path):
    async def go():
        async with instance(tmp_path) as (made, pid, config, venue, url, supervisor):
            supervisor.say(control.Assign(1, ROWS, [plan(url, (10, 1, "book"), (11, 1, "trade"))]))
            await supervisor.until(lambda: 11 in supervisor.streams and supervisor.streams[11].state == "ACKED")
            await settled(venue, "trades.BTC-PERPETUAL.100ms", tmp_path, [trade(1)], 1)
            supervisor.say(control.Assign(2, ROWS, [plan(url, (11, 1, "trade"), (13, 2, "trade"))]))
            await supervisor.until(lambda: 13 in supervisor.streams and supervisor.streams[13].state == "ACKED")
            await settled(venue, "trades.BTC-PERPETUAL.100ms", tmp_path, [trade(2)], 2)
            await settled(venue, "trades.ETH-PERPETUAL.100ms", tmp_path, [trade(3, "ETH-PERPETUAL")], 3)
            assert venue.connected == 1
            assert [entry for entry in venue.seen if "unsub" in entry[0]] == [("public/unsubscribe", ["book.BTC-PERPETUAL.100ms"])]
            supervisor.say(control.Assign(3, ROWS, []))
            for _ in range(300):
                if not venue.clients:
                    break
                await asyncio.sleep(0.01)
            assert not venue.clients
    run(go())


def test_a_cut_is_a_gap_in_the_ring_and_everything_comes_back(tmp_path):
    async def go():
        async with instance(tmp_path) as (made, pid, config, venue, url, supervisor):
            supervisor.say(control.Assign(1, ROWS, [plan(url, (10, 1, "book"), (11, 2, "trade"))]))
            await supervisor.until(lambda: 10 in supervisor.streams and supervisor.streams[10].state == "LIVE")
            await settled(venue, "trades.ETH-PERPETUAL.100ms", tmp_path, [trade(1, "ETH-PERPETUAL")], 1)
            begin = time.monotonic()
            venue.cut()
            await supervisor.until(lambda: supervisor.streams[10].state == "DOWN" or supervisor.sessions[1].reconnects)
            await supervisor.until(lambda: supervisor.streams[10].state == "LIVE" and venue.connected == 2)
            assert time.monotonic() - begin < 2
            await settled(venue, "trades.ETH-PERPETUAL.100ms", tmp_path, [trade(2, "ETH-PERPETUAL")], 2)
            codes = status_codes(tmp_path, 1)
            assert GAP in codes and codes.index(GAP) > 0 and codes[-1] == LIVE
    run(go())


def test_a_gap_in_the_sequence_causes_one_resubscribe_and_a_new_snapshot(tmp_path):
    async def go():
        async with instance(tmp_path) as (made, pid, config, venue, url, supervisor):
            supervisor.say(control.Assign(1, ROWS, [plan(url, (10, 1, "book"))]))
            await supervisor.until(lambda: 10 in supervisor.streams and supervisor.streams[10].state == "LIVE")
            venue.feed("book.BTC-PERPETUAL.100ms", *[book(n, n - 1) for n in range(100, 300)])
            await supervisor.until(lambda: supervisor.streams[10].gaps and supervisor.streams[10].state == "LIVE")
            assert [entry[0] for entry in venue.seen[1:]] == ["public/subscribe", "public/unsubscribe", "public/subscribe"]
    run(go())


def test_two_lines_of_a_book_and_its_trades_give_each_event_once_and_losing_one_is_no_gap(tmp_path):
    async def go():
        async with instance(tmp_path) as (made, pid, config, venue, url, supervisor):
            first = plan(url, (10, 1, "book"), (11, 1, "trade"), id=1)
            supervisor.say(control.Assign(1, ROWS, [first]))
            await supervisor.until(lambda: 10 in supervisor.streams and supervisor.streams[10].state == "LIVE")
            await settled(venue, "trades.BTC-PERPETUAL.100ms", tmp_path, [trade(1)], 1)
            venue.feed("book.BTC-PERPETUAL.100ms", book(20, 10))     # as the second connection's snapshot has it
            supervisor.say(control.Assign(2, ROWS, [first, plan(url, (20, 1, "book"), (21, 1, "trade"), id=2)]))
            await supervisor.until(lambda: 20 in supervisor.streams and supervisor.streams[20].state == "LIVE")
            venue.change = 100
            venue.feed("book.BTC-PERPETUAL.100ms", book(101, 20), book(102, 101))
            await settled(venue, "trades.BTC-PERPETUAL.100ms", tmp_path, [trade(n) for n in range(2, 30)], 29)
            await supervisor.until(lambda: supervisor.streams[21].state == "LIVE")
            next(iter(venue.clients)).transport.abort()
            await supervisor.until(lambda: supervisor.sessions[1].reconnects == 1 and supervisor.streams[11].state in ("ACKED", "LIVE"))
            venue.feed("book.BTC-PERPETUAL.100ms", book(103, 102))
            await settled(venue, "trades.BTC-PERPETUAL.100ms", tmp_path, [trade(n) for n in range(30, 60)], 59)
            trades = [body for _, of, kind, _, _, body in records(tmp_path) if kind == TRADE]
            assert len(trades) == len(set(trades)) == 59 and GAP not in status_codes(tmp_path, 1)
    run(go())


def test_without_a_supervisor_it_goes_on_and_spare_permits_reconnect_it(tmp_path):
    async def go():
        async with instance(tmp_path) as (made, pid, config, venue, url, supervisor):
            supervisor.say(control.Assign(1, ROWS, [plan(url, (11, 1, "trade"))]))
            supervisor.say(control.Permit("deribit", "v2", 3, time.monotonic_ns() + 20 * 10**9))
            await supervisor.until(lambda: 11 in supervisor.streams and supervisor.streams[11].state == "ACKED")
            supervisor.writer.close()
            await settled(venue, "trades.BTC-PERPETUAL.100ms", tmp_path, [trade(1)], 1)
            venue.cut(1001)
            for _ in range(300):
                if venue.connected == 2 and any("trades.BTC-PERPETUAL.100ms" in channels for channels in venue.clients.values()):
                    break
                await asyncio.sleep(0.01)
            await settled(venue, "trades.BTC-PERPETUAL.100ms", tmp_path, [trade(2)], 2)
            async with Supervisor(config.socket_path) as successor:
                await successor.until(lambda: successor.of(control.Hello))
                assert successor.of(control.Hello)[0].generation == 1, "a successor learns what the worker does"
                successor.say(control.Query())
                await successor.until(lambda: 11 in successor.streams)
                assert successor.streams[11].state == "LIVE"
    run(go())


def test_a_permit_that_does_not_come_is_asked_for_again_every_second(tmp_path):
    async def go():
        async with instance(tmp_path) as (made, pid, config, venue, url, supervisor):
            supervisor.grants = False
            supervisor.say(control.Assign(1, ROWS, [plan(url, (10, 1, "trade")), plan(url, (11, 2, "trade"), id=2)]))
            await supervisor.until(lambda: len(supervisor.of(control.WantPermit)) >= 4)
            assert [(want.count, want.again) for want in supervisor.of(control.WantPermit)][:4] == [(1, False), (1, False), (2, True), (2, True)]
            supervisor.grants = True
            await supervisor.until_states(_10="ACKED", _11="ACKED")
    run(go())


def test_a_killed_worker_leaves_no_torn_record_and_its_successor_resumes_the_ring(tmp_path):
    async def go():
        async with instance(tmp_path) as (made, pid, config, venue, url, supervisor):
            assign = control.Assign(1, ROWS, [plan(url, (10, 1, "book"), (11, 1, "trade"))])
            supervisor.say(assign)
            await supervisor.until(lambda: 11 in supervisor.streams and supervisor.streams[11].state == "ACKED")
            last = 0
            for life in range(1, 5):
                venue.feed("trades.BTC-PERPETUAL.100ms", *[trade(last + n) for n in range(1, 201)])
                await asyncio.sleep(0.002 * life)
                os.kill(pid, signal.SIGKILL)
                await gone(pid)
                before = records(tmp_path)
                begin = time.monotonic()
                pid = await made.fork(config)
                async with Supervisor(config.socket_path) as successor:
                    successor.say(assign)
                    await successor.until(lambda: 11 in successor.streams and successor.streams[11].state == "ACKED"
                                          and successor.streams.get(10) and successor.streams[10].state == "LIVE")
                    hello = successor.of(control.Hello)[0]
                print(f"life {life}: fresh data {1000 * (time.monotonic() - begin):.1f} ms after the fork")
                assert hello.pid == pid and hello.epoch == life + 1
                after = records(tmp_path)
                assert after[:len(before)] == before, "what was committed stays"
                assert [record[0] for record in after] == list(range(len(after))), "no hole in the positions"
                last += 200
    run(go())


def test_two_workers_cannot_write_one_ring(tmp_path):
    async def go():
        async with instance(tmp_path) as (made, pid, config, venue, url, supervisor):
            await supervisor.until(lambda: supervisor.told)
            rival = await made.fork(config)
            for _ in range(300):
                if made.exits:
                    break
                await asyncio.sleep(0.01)
            assert made.exits == [(rival, 1 << 8)]
            supervisor.say(control.Query())
            await supervisor.until(lambda: supervisor.of(control.States))
    run(go())


def test_a_control_peer_that_sends_nonsense_is_dropped_and_the_data_goes_on(tmp_path):
    async def go():
        async with instance(tmp_path) as (made, pid, config, venue, url, supervisor):
            supervisor.say(control.Assign(1, ROWS, [plan(url, (11, 1, "trade"))]))
            await supervisor.until(lambda: 11 in supervisor.streams and supervisor.streams[11].state == "ACKED")
            reader, writer = await asyncio.open_unix_connection(config.socket_path)
            writer.write(b"\xff\xff\xff\xffnonsense")
            while await reader.read(4096):
                pass
            writer.close()
            await settled(venue, "trades.BTC-PERPETUAL.100ms", tmp_path, [trade(1)], 1)
    run(go())


def depth(update):
    return frame(TEXT, json.dumps({"stream": "btcusdt@depth@100ms", "data": {
        "e": "depthUpdate", "E": 1700000000000 + update, "s": "BTCUSDT", "U": update, "u": update, "b": [["100.0", "1.5"]],
        "a": []}}).encode())


async def binance(reader, writer):
    """Acknowledges, then sends one change every 20 ms from sequence 101."""
    opcode, payload = await read_frame(reader)
    writer.write(frame(TEXT, json.dumps({"result": None, "id": json.loads(payload)["id"]}).encode()))
    for update in itertools.count(101):
        writer.write(depth(update))
        await asyncio.sleep(0.02)


def test_a_book_from_rest_asks_again_while_its_snapshot_is_too_old_or_refused_and_then_chains(tmp_path):
    answers = [(503, 0), (200, 50), (200, 105)]

    class WithRest(Supervisor):
        def hear(self, message):
            super().hear(message)
            if isinstance(message, control.WantSnapshot):
                status, last = answers.pop(0)
                body = json.dumps({"lastUpdateId": last, "bids": [["100.0", "1"]], "asks": [["101.0", "2"]]})
                asyncio.get_running_loop().call_later(0.05, self.say, control.Snapshot(message.stream, status, body.encode()))

    async def go():
        async with launcher() as made, serving(binance) as url:
            config = WorkerOptions(str(tmp_path), "test", 0, slot_count=4096, row_max=64, level_max=100)
            await made.fork(config)
            async with WithRest(config.socket_path) as supervisor:
                stream = control.StreamPlan(10, 1, "stream", "btcusdt@depth@100ms", "BTCUSDT", "book", snapshot="rest")
                supervisor.say(control.Assign(1, [control.InstrumentRow(1, "binance-spot", "BTCUSDT", -2, -5)], [
                    control.ConnectionPlan(1, "binance-spot", "stream", url, [stream])]))
                await supervisor.until(lambda: 10 in supervisor.streams and supervisor.streams[10].state == "LIVE")
                assert len(supervisor.of(control.WantSnapshot)) == 3 and not answers
        assert any(kind == LEVEL for _, _, kind, *_ in records(tmp_path))
    run(go())


def test_what_cannot_be_done_of_a_plan_is_noted_and_the_rest_is_done(tmp_path):
    async def go():
        async with instance(tmp_path) as (made, pid, config, venue, url, supervisor):
            bad = control.ConnectionPlan(9, "atlantis", "v2", url, [stream_plan(90, 1, "trade")])
            rows = [control.InstrumentRow(5000, "deribit", "TOO-FAR", 0, 0), *ROWS]
            supervisor.say(control.Assign(1, rows, [bad, plan(url, (11, 1, "trade"))]))
            await supervisor.until(lambda: 11 in supervisor.streams and supervisor.streams[11].state == "ACKED")
            supervisor.say(control.Snapshot(11, 200, b"{}"))
            supervisor.say(control.Query())
            await supervisor.until(lambda: supervisor.of(control.States)[-1].full)
            errors = (tmp_path / "worker-0.counters").read_bytes()
            assert b"'atlantis' is not known" in errors and b"5000 is above" in errors
    run(go())


def test_a_punishment_is_reported_and_waited_out(tmp_path):
    async def go():
        async with instance(tmp_path) as (made, pid, config, venue, url, supervisor):
            supervisor.say(control.Assign(1, ROWS, [plan(url, (11, 1, "trade"))]))
            await supervisor.until(lambda: 11 in supervisor.streams and supervisor.streams[11].state == "ACKED")
            venue.cut(1008)
            await supervisor.until(lambda: supervisor.of(control.Punished))
            assert supervisor.of(control.Punished)[0].code == 1008
            await supervisor.until(lambda: supervisor.sessions[1].state == "BACKOFF")
            assert venue.connected == 1
    run(go())


def test_sigterm_ends_it_as_stop_does(tmp_path):
    async def go():
        async with instance(tmp_path) as (made, pid, config, venue, url, supervisor):
            supervisor.say(control.Assign(1, ROWS, [plan(url, (11, 1, "trade"))]))
            await supervisor.until(lambda: 11 in supervisor.streams and supervisor.streams[11].state == "ACKED")
            os.kill(pid, signal.SIGTERM)
            await gone(pid)
            for _ in range(200):
                if made.exits:
                    break
                await asyncio.sleep(0.01)
            assert made.exits == [(pid, 0)] and supervisor.of(control.Stopped)
    run(go())
