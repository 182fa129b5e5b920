"""python -m bench.client KIND URL CPU CA_FILE [DIRECTORY [SPIN]]: one client until the server closes; prints one JSON line.

KIND: session-null (our session, frames counted and dropped), session (session, decode, book, state, ring in DIRECTORY), aiohttp,
websockets (both: receive only), usual (websockets, orjson, Decimal, SortedDict: a handler as it is usually written in Python).
CPU time counts from the upgrade to the close. SPIN (spin or block) also asks for SCHED_FIFO: latency runs are short.
"""
import asyncio
import contextlib
import decimal
import json
import os
import pathlib
import ssl
import sys
import time

SYMBOL, VENUE = "BTCUSDT", "binance-usdm"
SLOT_COUNT, ROW_MAX, LEVEL_MAX = 1 << 17, 64, 2000
FRAME_SIZE_MAX = 16 << 20


class Tally:
    """Messages and bytes received, and the time since the first moment."""

    def __init__(self):
        self.messages = self.bytes = 0
        self.start()

    def start(self):
        self.cpu, self.wall = time.process_time_ns(), time.monotonic_ns()

    def json(self, **more):
        return json.dumps({"messages": self.messages, "bytes": self.bytes, "cpu_ns": time.process_time_ns() - self.cpu,
                           "wall_ns": time.monotonic_ns() - self.wall, **more})


def context_of(url, ca_file):
    return ssl.create_default_context(cafile=ca_file) if url.startswith("wss") else None


# -- ours ----------------------------------------------------------------------------------------------------------

class Owner:
    """The least that a session needs above it."""

    def __init__(self, tally, fifo):
        self.tally, self.fifo = tally, fifo
        self.ended = asyncio.get_running_loop().create_future()

    def opened(self, session):
        if self.fifo:
            with contextlib.suppress(PermissionError):
                os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        self.tally.start()

    def control(self, session, payload):
        pass

    def ping(self, session, payload):
        session.send_pong(payload)

    def notices(self):
        self.session_publisher.notices()

    def failed(self, session, error):
        raise error

    def closed(self, session, code, reason):
        self.ended.set_result(code)


def publisher_in(directory, null):
    """(publisher, venue) with one instrument that has every stream of the benchmark; its book from DIRECTORY/snapshot.json."""
    from bench import loops
    from feedhandler import venues
    from feedhandler.worker.publisher import Publisher
    dir_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    publisher = Publisher(dir_fd, 0, SLOT_COUNT, ROW_MAX, LEVEL_MAX, 1)
    venue = loops.NullVenue(ROW_MAX) if null else venues.load(VENUE, ROW_MAX)
    venue.add_instrument(0, SYMBOL, -2, -3)
    for channel in ("trade", "quote"):
        publisher.add_stream(venue, 0, channel)
    snapshot = pathlib.Path(directory, "snapshot.json")
    if snapshot.exists():
        publisher.add_stream(venue, 0, "book", 0, "rest")
        publisher.hold(0)
        publisher.snapshot(venue, 0, snapshot.read_bytes(), time.time_ns())
    return publisher, venue


async def ours(kind, url, ca_file, directory, spin):
    from feedhandler.worker.session import Session, connect
    publisher, venue = publisher_in(directory, kind == "session-null")
    tally = Tally()
    owner = Owner(tally, bool(spin))
    owner.session_publisher = publisher
    session = Session(publisher, venue, owner, 0, FRAME_SIZE_MAX, True)
    await connect(session, url, context_of(url, ca_file))
    loop = asyncio.get_running_loop()

    def turn():
        if not owner.ended.done():
            loop.call_soon(turn)
    if spin == "spin":
        turn()
    await owner.ended
    tally.messages, tally.bytes = publisher.counter("frames"), publisher.counter("frame_bytes")
    text = tally.json(events=publisher.counter("events"), duplicates=publisher.counter("duplicates"), position=publisher.position)
    publisher.close()
    return text


# -- peers ---------------------------------------------------------------------------------------------------------

async def aiohttp_client(url, ca_file):
    import aiohttp
    async with aiohttp.ClientSession() as session, session.ws_connect(url, ssl=context_of(url, ca_file) or True, max_msg_size=0) as socket:
        tally = Tally()
        async for message in socket:
            tally.messages += 1
            tally.bytes += len(message.data)
        return tally.json()


async def websockets_client(url, ca_file):
    import websockets
    async with websockets.connect(url, ssl=context_of(url, ca_file), compression=None, max_size=None) as socket:
        tally = Tally()
        try:
            while True:
                message = await socket.recv(decode=False)
                tally.messages += 1
                tally.bytes += len(message)
        except websockets.ConnectionClosed:
            return tally.json()


async def usual_client(url, ca_file, directory):
    """websockets, orjson, Decimal, SortedDict; a callback that takes what it is given."""
    import orjson
    import websockets
    from sortedcontainers import SortedDict
    bids, asks = SortedDict(), SortedDict()
    D = decimal.Decimal
    snapshot = pathlib.Path(directory, "snapshot.json")
    if snapshot.exists():
        data = orjson.loads(snapshot.read_bytes())
        for book, rows in ((bids, data["bids"]), (asks, data["asks"])):
            book.update((D(price), D(size)) for price, size in rows)
    seen = []

    def callback(*values):
        seen[:] = values
    async with websockets.connect(url, ssl=context_of(url, ca_file), compression=None, max_size=None) as socket:
        tally = Tally()
        try:
            while True:
                message = await socket.recv(decode=False)
                now = time.time()
                tally.messages += 1
                tally.bytes += len(message)
                data = orjson.loads(message)["data"]
                kind = data["e"]
                if kind == "bookTicker":
                    callback(data["s"], D(data["b"]), D(data["B"]), D(data["a"]), D(data["A"]), data["E"] / 1000, now)
                elif kind == "trade":
                    callback(data["s"], "sell" if data["m"] else "buy", D(data["p"]), D(data["q"]), data["t"], data["T"] / 1000, now)
                else:
                    delta = ([], [])
                    for book, rows, out in ((bids, data["b"], delta[0]), (asks, data["a"], delta[1])):
                        for price, size in rows:
                            price, size = D(price), D(size)
                            if size:
                                book[price] = size
                            else:
                                book.pop(price, None)
                            out.append((price, size))
                    callback(data["s"], bids, asks, delta, data["E"] / 1000, now)
        except websockets.ConnectionClosed:
            return tally.json(best=[str(bids.peekitem(-1)[0]), str(asks.peekitem(0)[0])] if bids else [])


def main():
    kind, url, cpu, ca_file, *rest = sys.argv[1:]
    os.sched_setaffinity(0, {int(cpu)})
    directory, spin = (*rest, "", "")[:2]
    if kind in ("session", "session-null"):
        task = ours(kind, url, ca_file, directory, spin)
    elif kind == "usual":
        task = usual_client(url, ca_file, directory)
    else:
        task = {"aiohttp": aiohttp_client, "websockets": websockets_client}[kind](url, ca_file)
    import uvloop
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(runner.run(task))


if __name__ == "__main__":
    main()
