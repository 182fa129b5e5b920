"""Plays recorded captures: each frame goes, byte for byte and in order, to whoever subscribed to its stream.

A recorded REST book is the answer to the depth request of its symbol, and the playing waits for that request
where the recording needs it: after the symbol's first book frame, and where the snapshot was recorded. Frames
recorded before the snapshot are sent before it is answered. Nothing is dropped: a full socket holds the player.
"""
import asyncio
import dataclasses
import gzip
import json
import re
import urllib.parse

from feedhandler.simulate.venues.side import Reply, decimals

SNAPSHOT_WAIT_S = 10.0      # for a depth request that never comes
SNAPSHOT_SETTLE_S = 0.05    # after a snapshot, before the next frame: the answer travels on another connection
BATCH = 256                 # frames between two looks at the loop
PAUSE_MAX_S = 0.002
SCAN_FRAMES = 20_000        # frames looked at for the digits of a symbol without an instrument list
QUOTED_NUMBER = re.compile(r'\["?([0-9.]+)"?,"?([0-9.]+)"?')
NAMED_NUMBER = re.compile(r'"price":([0-9.]+),"qty":([0-9.]+)')


@dataclasses.dataclass(slots=True)
class Frame:
    time_ns: int
    family: tuple
    payload: bytes


@dataclasses.dataclass(slots=True)
class Snapshot:
    time_ns: int
    symbol: str
    body: bytes


class CaptureError(ValueError):
    """A capture that cannot be played; the text says which line and why."""


class Player:
    """Plays one capture on one venue's side."""

    def __init__(self, simulator, side, path):
        self.simulator = simulator
        self.side = side
        self.path = path
        self.script = []            # Frame and Snapshot in recorded order
        self.control_frames = 0     # acks, heartbeats: the simulator makes its own
        self.frames_sent = self.frames_unwanted = 0
        self.requests = {}          # symbol -> [future]
        self.requested = asyncio.Event()
        self.answered = {}          # symbol -> body served last
        self.finished = asyncio.Event()
        self.cached, self.cached_at = {}, -1    # subscribed families, and at which count of subscription changes
        self.load()

    # -- reading ---------------------------------------------------------------------------------------------
    def load(self):
        with gzip.open(self.path, "rb") as file:
            for number, line in enumerate(file, 1):
                parts = line.rstrip(b"\n").split(b"\t", 3)
                if len(parts) != 4 or not parts[0].isdigit():
                    raise CaptureError(f"{self.path}: line {number} is not time, connection, direction and payload; is this a capture?")
                self.take(int(parts[0]), parts[2], parts[3])
        self.symbols = sorted({entry.symbol if isinstance(entry, Snapshot) else entry.family[1] for entry in self.script} - {""})
        self.adopt()
        self.depth_symbols = {entry.symbol for entry in self.script if isinstance(entry, Snapshot)}

    def take(self, time_ns, direction, payload):
        if direction == b"in":
            family = self.side.family(payload)
            if family:
                self.script.append(Frame(time_ns, family, payload))
            else:
                self.control_frames += 1
        elif direction == b"rest":
            url, _, body = payload.partition(b" ")
            parsed = urllib.parse.urlparse(url.decode())
            query = dict(urllib.parse.parse_qsl(parsed.query))
            if parsed.path.endswith("/depth"):
                self.script.append(Snapshot(time_ns, query.get("symbol", ""), body))
            else:
                self.side.rest_recorded.append((parsed.path, query, body))

    def adopt(self):
        """Instruments of the recorded symbols, with the digits seen in their frames."""
        digits = {}
        for entry in self.script[:SCAN_FRAMES]:
            symbol = entry.symbol if isinstance(entry, Snapshot) else entry.family[1]
            text = (entry.body if isinstance(entry, Snapshot) else entry.payload).decode()
            price, size = digits.get(symbol, (0, 0))
            for found in QUOTED_NUMBER.findall(text) + NAMED_NUMBER.findall(text):
                price, size = max(price, decimals(found[0])), max(size, decimals(found[1]))
            digits[symbol] = price, size
        for symbol in self.symbols:
            self.side.adopt(symbol, *digits.get(symbol, (2, 3)))

    # -- playing ---------------------------------------------------------------------------------------------
    def subscribed(self):
        """Families somebody is subscribed to: {family: [stream]}."""
        wanted = {}
        for stream in self.side.streams.values():
            if stream.connections:
                wanted.setdefault(stream.family, []).append(stream)
        return wanted

    async def wait_subscriptions(self, wait):
        """wait: how many streams, or "all" streams of the capture whose channel somebody asked for."""
        families = {entry.family for entry in self.script if isinstance(entry, Frame)}
        while True:
            have = set(self.subscribed()) & families
            if wait == "all":
                kinds = {family[0] for family in have}
                if have and have == {family for family in families if family[0] in kinds} and self.simulator.quiet_s() > 0.3:
                    return
            elif len(have) >= int(wait):
                return
            await asyncio.sleep(0.01)

    async def play(self, speed, wait):
        """Play everything once. speed: factor on the recorded pace, 0 for as fast as the sockets take it."""
        await self.wait_subscriptions(wait)
        loop = asyncio.get_running_loop()
        started, first_ns = loop.time(), self.script[0].time_ns if self.script else 0
        met = set()
        for number, entry in enumerate(self.script):
            if speed:
                await self.pace(loop, started + (entry.time_ns - first_ns) / 1e9 / speed)
            if isinstance(entry, Snapshot):
                await self.serve(entry)
                continue
            self.send(entry)
            if number % BATCH == BATCH - 1:
                await self.drain()
            symbol = entry.family[1]
            if entry.family[0] == "depth" and symbol in self.depth_symbols and symbol not in met:
                met.add(symbol)
                await self.drain()
                await self.await_request(symbol)
        await self.drain()
        for symbol, futures in self.requests.items():
            self.answer(symbol)
        self.finished.set()

    async def pace(self, loop, due):
        """Send what is queued and sleep until due; being late is caught up."""
        self.simulator.flush()
        delay = due - loop.time()
        if delay > 0.0005:
            await asyncio.sleep(delay)

    def send(self, frame):
        streams = self.cache().get(frame.family)
        if not streams:
            self.frames_unwanted += 1
            return
        self.frames_sent += 1
        for stream in streams:
            self.simulator.send(stream, frame.payload, self.frames_sent)

    def cache(self):
        """Subscribed families, looked up anew only when a subscription changed."""
        if self.cached_at != self.simulator.subscription_changes:
            self.cached, self.cached_at = self.subscribed(), self.simulator.subscription_changes
        return self.cached

    async def drain(self):
        """Let the sockets take what was written; while one is full, wait."""
        self.simulator.flush()
        await asyncio.sleep(0)
        while self.simulator.blocked():
            await asyncio.sleep(PAUSE_MAX_S)
            self.simulator.flush()

    # -- snapshots -------------------------------------------------------------------------------------------
    def wants_book(self, symbol):
        return ("depth", symbol) in self.cache()

    async def await_request(self, symbol):
        """Wait for a depth request of the symbol, if somebody keeps its book."""
        deadline = asyncio.get_running_loop().time() + SNAPSHOT_WAIT_S
        while self.wants_book(symbol) and not self.requests.get(symbol):
            self.requested.clear()
            left = deadline - asyncio.get_running_loop().time()
            if left <= 0:
                return
            try:
                await asyncio.wait_for(self.requested.wait(), left)
            except asyncio.TimeoutError:
                return

    async def serve(self, snapshot):
        self.answered[snapshot.symbol] = snapshot.body
        await self.drain()
        await self.await_request(snapshot.symbol)
        if self.answer(snapshot.symbol):
            await asyncio.sleep(SNAPSHOT_SETTLE_S)

    def answer(self, symbol):
        """Answer the requests that wait for this symbol's book. Returns whether there was one."""
        futures = self.requests.pop(symbol, [])
        for future in futures:
            if not future.done():
                future.set_result(self.answered.get(symbol, b"{}"))
        return bool(futures)

    async def depth(self, instrument, headers):
        """The depth request: waits until the player comes to the recorded snapshot; later requests get it again."""
        symbol = instrument.symbol
        if symbol in self.answered or symbol not in self.depth_symbols:
            if symbol not in self.depth_symbols:
                return Reply(json.dumps({"code": -1121, "msg": "the capture has no book of this symbol"}).encode(), 400, headers)
            return Reply(self.answered[symbol], headers=headers)
        future = asyncio.get_running_loop().create_future()
        self.requests.setdefault(symbol, []).append(future)
        self.requested.set()
        return Reply(await future, headers=headers)

    def document(self):
        return {"capture": str(self.path), "finished": self.finished.is_set(), "frames": sum(isinstance(entry, Frame) for entry in self.script),
                "frames_sent": self.frames_sent, "frames_unwanted": self.frames_unwanted, "control_frames": self.control_frames}
