"""A raw client for tests of the simulated venues, and a tiny book that knows nothing of ours."""
import asyncio
import decimal
import hashlib
import json
import ssl
import zlib

import aiohttp
import picows
import uvloop

TIMEOUT_S = 10


class Client(picows.WSListener):
    """Keeps every frame in order; until() waits for one that fits."""

    def __init__(self, auto_pong=True):
        self.frames, self.pings, self.closed, self.waiters, self.auto_pong = [], [], None, [], auto_pong
        self.kinds = []

    def on_ws_connected(self, transport):
        self.transport = transport

    def on_ws_frame(self, transport, frame):
        payload = frame.get_payload_as_bytes()
        self.kinds.append((frame.msg_type, frame.fin, frame.rsv1))
        if frame.msg_type == picows.WSMsgType.PING:
            self.pings.append(payload)
            if self.auto_pong:
                transport.send_pong(payload)
        elif frame.msg_type == picows.WSMsgType.CLOSE:
            self.closed = int(frame.get_close_code().value if hasattr(frame.get_close_code(), "value") else frame.get_close_code()), frame.get_close_message()
            transport.disconnect()
        else:
            self.frames.append(payload)
        self.wake()

    def on_ws_disconnected(self, transport):
        self.closed = self.closed or (1006, b"")
        self.wake()

    def wake(self):
        for waiter in self.waiters:
            waiter.set()

    def send(self, message):
        self.transport.send(picows.WSMsgType.TEXT, message if isinstance(message, bytes) else json.dumps(message).encode())

    async def until(self, condition, timeout=TIMEOUT_S):
        """Wait until condition() is true (checked after each frame) and return its value."""
        event = asyncio.Event()
        self.waiters.append(event)
        try:
            async with asyncio.timeout(timeout):
                while not (value := condition()):
                    await event.wait()
                    event.clear()
                return value
        finally:
            self.waiters.remove(event)

    async def text(self, needle, start=0):
        """The first frame from index `start` on that contains the bytes."""
        return await self.until(lambda: next((frame for frame in self.frames[start:] if needle in frame), None))

    async def count(self, number):
        await self.until(lambda: len(self.frames) >= number)

    async def gone(self):
        await self.until(lambda: self.closed)
        return self.closed


def trust(simulator):
    return ssl.create_default_context(cafile=simulator.ca_file) if simulator.ca_file else None


async def connect(simulator, venue, endpoint=None, tail="", **options):
    urls = simulator.endpoints[venue]["urls"]
    url = urls[endpoint] if endpoint else next(iter(urls.values()))
    client = Client(**options)
    await picows.ws_connect(lambda: client, url + tail, ssl_context=trust(simulator), max_frame_size=128 << 20, enable_auto_pong=False)
    return client


async def get(simulator, venue, path):
    """(status, headers, body) of a REST call."""
    url = simulator.admin + path if venue is None else simulator.endpoints[venue]["rest"] + path
    async with aiohttp.ClientSession() as session, session.get(url, ssl=trust(simulator) or False) as answer:
        return answer.status, answer.headers, await answer.read()


async def post_fault(simulator, **fault):
    async with aiohttp.ClientSession() as session, session.post(simulator.admin + "/fault", json=fault, ssl=trust(simulator) or False) as answer:
        return answer.status, await answer.json()


async def hold(simulator, client):
    """Stop the market and let everything sent arrive."""
    simulator.held_sending = True
    simulator.flush()
    seen = -1
    while seen != len(client.frames):
        seen = len(client.frames)
        await asyncio.sleep(0.05)


def run(coroutine):
    return uvloop.run(asyncio.wait_for(coroutine, 40))


class Text(str):
    """A number of a JSON document as it was written."""


def loads(payload):
    return json.loads(payload, parse_float=Text, parse_int=Text)


def canonical(text):
    value = decimal.Decimal(text)
    text = format(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


class TestBook:
    """Two dicts and a digest of the best prices."""
    __test__ = False

    def __init__(self, depth=0):
        self.sides, self.depth, self.previous, self.changes, self.hash = ({}, {}), depth, None, 0, hashlib.sha256()

    def clear(self):
        self.sides = ({}, {})

    def apply(self, bids, asks, texts=False):
        for side, rows in zip(self.sides, (bids, asks)):
            for price, size in rows:
                key = decimal.Decimal(price)
                if decimal.Decimal(size):
                    side[key] = (price, size)
                else:
                    side.pop(key, None)
        for side, worst in ((0, min), (1, max)):
            while self.depth and len(self.sides[side]) > self.depth:
                del self.sides[side][worst(self.sides[side])]

    def rows(self, side):
        return [self.sides[side][price] for price in sorted(self.sides[side], reverse=side == 0)]

    def step(self):
        """One applied message is over."""
        line = " ".join(canonical(part) for side in (0, 1) for part in self.rows(side)[0])
        if line != self.previous:
            self.previous, self.changes = line, self.changes + 1
            self.hash.update(line.encode() + b"\n")

    def crc(self):
        text = "".join(part.replace(".", "").lstrip("0") for side in (1, 0) for row in self.rows(side)[:10] for part in row)
        return zlib.crc32(text.encode())

    def all_sha256(self):
        parts = ["".join(f"{canonical(price)} {canonical(size)}\n" for price, size in self.rows(side)) + "\n" for side in (0, 1)]
        return hashlib.sha256("".join(parts).encode()).hexdigest()

    def same_as(self, document, l1=True):
        assert [list(map(canonical, row)) for row in self.rows(0)[:20]] == document["bids"]
        assert self.all_sha256() == document["all_sha256"]
        assert [len(self.sides[0]), len(self.sides[1])] == document["levels"]
        if l1:
            assert document["exact"]["l1"]
            assert (self.changes, self.hash.hexdigest()) == (document["l1_changes"], document["l1_sha256"])


def digest(lines):
    return {"n": len(lines), "sha256": hashlib.sha256("".join(line + "\n" for line in lines).encode()).hexdigest()}


def same_lines(lines, document):
    assert digest(lines) == {"n": document["n"], "sha256": document["sha256"]}
    assert document["exact"]


def trade_line(price, size, taker_buys):
    return f"{canonical(price)} {canonical(size)} {'B' if taker_buys else 'S'}"


def quote_line(*parts):
    return " ".join(canonical(part) for part in parts)


