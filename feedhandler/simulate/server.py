"""The simulated exchange: WebSockets over TLS, REST beside it, and the loop that sends.

One process, one event loop, loopback only. `/<venue><path>` on the WebSocket port is a venue's endpoint,
`/<venue>` on the REST port its REST base, `/_sim/…` there the admin side. The sender takes instruments in turn,
renders one event of each from prepared bytes, and writes once per connection and turn. It never waits for a
client: a backlog above the maximum is punished as the venue does, except at speed "max", where a full socket
holds everybody, so that nothing is lost.
"""
import asyncio
import collections
import contextlib
import ctypes
import dataclasses
import inspect
import json
import os
import pathlib
import shutil
import tempfile
import time
import urllib.parse

import aiohttp.web
import picows

from feedhandler.simulate import certificates, limits, market
from feedhandler.simulate.faults import Faults, FaultError, header
from feedhandler.simulate.oracle import Oracle
from feedhandler.simulate.player import Player
from feedhandler.simulate.throttle import Throttle
from feedhandler.simulate.venues import load, names
from feedhandler.simulate.venues.side import Reply

TURN_S = 0.001              # between two looks at the clock
TURN_FRAMES_MAX = 2_000     # per turn at a given rate, so that control messages are answered
BURST_STEPS = 128           # events per turn at full speed
TICK_S = 0.1
SLOW_S = 1.0
BACKLOG_MAX = 16 << 20      # bytes a client may leave unread before it is a slow reader
WRITE_HIGH = 4 << 20        # bytes in the transport before it says that it is full
STOP_DRAIN_S = 2.0
DARK_AFTER_S = 0.1          # a connection goes dark when what was sent last has been acknowledged
SO_ATTACH_FILTER = 26       # <asm-generic/socket.h>; Python has no name for it
CHANNEL_ORDER = ("trade", "agg_trade", "quote", "book", "window")
CATCH_UP_S = 0.25           # a sender later than this starts its count anew
HEADERS = [header(size) for size in range(4096)]


@dataclasses.dataclass
class SimulatorConfig:
    """What to simulate. Every field has a use of its own; the defaults run a small, honest venue."""
    venues: tuple = ("binance-spot",)
    instruments: int = 10
    rate: float = 1000.0            # data messages a second over all venues and connections
    rate_each: float = 0.0          # messages a second of every subscribed stream, instead: who takes more gets more. 0: `rate` holds
    speed: float | str = 1.0        # of a capture, or "max"; "max" also lifts the rate of the synthetic market
    seed: int = 1
    levels: int = market.LEVELS_DEFAULT
    captures: dict = dataclasses.field(default_factory=dict)     # venue -> path
    wait_subscriptions: str = "all"
    tls: bool = True
    host: str = "127.0.0.1"
    port: int = 0
    rest_port: int = 0
    directory: str = ""             # for ca.pem; "" makes a temporary one and removes it at stop
    enforce: bool = True            # limits are punished, not only counted
    time_scale: float = 1.0         # multiplies bans, idle times and deadlines; windows of limits stay
    ping_every_s: float = 0.0       # 0: the venue's own
    lifetime_s: float = 86_400.0    # a connection's; the venue's notice comes notice_s before
    notice_s: float = 10.0
    snapshot_delay_s: float = 0.02  # a REST book is this old when it is answered
    snapshot_pause_s: float = 0.0   # keep the instrument still so long after a REST book: makes the L1 path exact
    backlog_max: int = BACKLOG_MAX
    throttle_above: float = 0.0     # messages a second that one connection is sent; what is above waits, and comes late. 0: any number
    throttle_drop_s: float = 0.0    # a connection so late is closed as a slow one; 0: only when backlog_max is reached
    heavy: dict = dataclasses.field(default_factory=dict)        # symbol -> how many times the events of another instrument
    close_at_end: bool = False      # close all connections when the captures have been played


class SideOptions:
    """What a venue's side asks of the configuration."""

    def __init__(self, config):
        self.enforce = config.enforce
        self.scale = config.time_scale
        self.ping_every_s = config.ping_every_s

    def ban(self, seconds):
        return seconds * self.scale

    idle = pong_deadline_s = ban

    def ping_s(self, seconds):
        return self.ping_every_s or seconds * self.scale


class Connection(picows.WSListener):
    """One client. Sides write with text(), ping() and close(); the sender appends to `out`."""

    def __init__(self, simulator, side, endpoint, path, query):
        self.simulator, self.side = simulator, side
        self.endpoint, self.path, self.query = endpoint, path, query
        self.identity = simulator.next_identity()
        self.state, self.streams, self.names = {}, {}, set()
        self.out = []
        self.raw = False            # Binance: frames without the combined wrapper
        self.paused = False         # the transport is full
        self.closing = False
        self.stalled_until = 0.0
        self.half_open = False
        self.throttle = simulator.venue_throttle()
        self.opened_at = self.received_at = self.sent_at = simulator.clock()
        self.notice_sent = False
        self.transport = None

    # -- for sides -------------------------------------------------------------------------------------------
    def now(self):
        return self.simulator.clock()

    def wall_ms(self):
        return self.simulator.wall_ms()

    def text(self, payload):
        self.out += (header(len(payload)), payload)
        self.flush()

    def ping(self, payload):
        self.out.append(header(len(payload), 0x89) + payload)
        self.flush()

    def close(self, code, reason):
        """Say why and go; what was written before is sent first."""
        if self.closing:
            return
        self.flush()
        self.closing = True
        self.simulator.closes[f"{self.side.name}: {code} {reason}"] += 1
        self.transport.send_close(code, reason.encode())
        self.transport.disconnect()

    def abort(self):
        self.closing = True
        self.transport.underlying_transport.abort()

    def reset(self):
        """RST now: connect() to no address (AF_UNSPEC) makes the kernel send one, whenever the loop gets to close the socket."""
        fd = self.transport.underlying_transport.get_extra_info("socket").fileno()
        if ctypes.CDLL(None).connect(fd, bytes(16), 16) != 0:
            raise OSError(f"the connection {self.identity} of {self.side.name} could not be reset")
        self.abort()

    def attach(self, stream, snapshot=True):
        """Serve a stream from now on. A second subscribe changes nothing."""
        if stream.wire in self.streams:
            return
        self.streams[stream.wire] = stream
        initial = bool(snapshot and stream.snapshot and not (self.simulator.playing and stream.instrument))
        self.simulator.activate(stream, self)
        self.simulator.oracle.opened(self, stream, initial)
        if initial:
            for payload in stream.snapshot(stream.instrument.position if stream.instrument else 0, self.wall_ms()):
                self.text(payload)

    def detach(self, wire, broken=False):
        self.names.discard(wire)
        stream = self.streams.pop(wire, None)
        if stream:
            self.simulator.oracle.closed(self, stream, broken)
            self.simulator.deactivate(stream, self)

    # -- socket ----------------------------------------------------------------------------------------------
    def on_ws_connected(self, transport):
        self.transport = transport
        transport.underlying_transport.set_write_buffer_limits(high=WRITE_HIGH)
        self.simulator.connections.append(self)
        self.simulator.connections_opened += 1
        self.side.connected(self)

    def on_ws_disconnected(self, transport):
        self.closing = True
        for wire in list(self.streams):
            self.detach(wire, broken=not self.simulator.stopping)
        if self in self.simulator.connections:
            self.simulator.connections.remove(self)
            self.side.left(self)

    def on_ws_frame(self, transport, frame):
        if self.half_open or self.closing:
            return
        self.received_at = self.now()
        self.simulator.client_frames += 1
        kind = frame.msg_type
        payload = frame.get_payload_as_bytes()
        if kind == picows.WSMsgType.TEXT:
            self.side.received(self, payload)
        elif kind == picows.WSMsgType.PING:
            self.out.append(header(len(payload), 0x8A) + payload)
            self.flush()
            self.side.control(self, "ping", payload)
        elif kind == picows.WSMsgType.PONG:
            self.side.control(self, "pong", payload)
        elif kind == picows.WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code())
            transport.disconnect()
        else:
            self.close(1003, "text frames only")

    def pause_writing(self):
        self.paused = True

    def resume_writing(self):
        self.paused = False
        self.flush()

    def flush(self):
        """Write what is queued, unless the transport is full or a fault holds it."""
        if not (self.out or self.throttle) or self.paused or self.closing or self.held():
            return
        data = b"".join(self.out)
        self.out.clear()
        if self.throttle:
            data = self.throttled(data)
        if not data:
            return
        self.transport.underlying_transport.write(data)
        self.sent_at = self.now()
        self.simulator.bytes_sent += len(data)

    def go_dark(self):
        """From now on nothing comes from here, not even an acknowledgement: the path to the client is gone."""
        self.half_open = True
        asyncio.get_running_loop().call_later(DARK_AFTER_S, self.deafen)

    def deafen(self):
        """Drop what the client's kernel sends, keepalive probes too, before ours can answer it."""
        raw = self.transport.underlying_transport.get_extra_info("socket")
        if raw is None or raw.fileno() < 0:
            return
        drop_all = ctypes.create_string_buffer(struct.pack("HBBI", 0x06, 0, 0, 0))     # BPF: return 0 bytes of every packet
        with socket.socket(fileno=os.dup(raw.fileno())) as sock:
            sock.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(drop_all)))

    def held(self):
        return self.half_open or self.stalled_until and self.now() < self.stalled_until

    def hold_back(self, throttle):
        """Send no more than this Throttle allows, from now on; what waits in another one waits on."""
        if self.throttle:
            throttle.queue, throttle.size = self.throttle.queue, self.throttle.size
        self.throttle = throttle

    def throttled(self, data):
        """The part of it, and of what waits before it, whose time has come."""
        now = self.now()
        data = self.throttle.pass_on(data, now)
        if self.throttle.is_over(now):
            self.throttle = self.simulator.venue_throttle()
        return data

    def backlog(self):
        return sum(map(len, self.out)) + (self.throttle.size if self.throttle else 0)


class Simulator:
    """The exchange. start() gives `endpoints` and `ca_file`; stop() leaves nothing behind."""

    def __init__(self, config):
        unknown = set(config.venues) | set(config.captures)
        unknown -= set(names())
        if unknown:
            raise ValueError(f"venue {', '.join(sorted(unknown))} cannot be simulated; use one of {', '.join(names())}")
        self.config = config
        self.usage = limits.Usage()
        self.sides, self.players = {}, []
        self.playing = bool(config.captures)
        self.connections = []
        self.active = []                # instruments with a subscribed stream, served in turn
        self.slow_streams = []
        self.turn = 0
        self.subscription_changes = 0
        self.subscribed_at = 0.0
        self.identities = 0
        self.frames_sent = self.bytes_sent = self.client_frames = self.events = 0
        self.connections_opened = self.connections_refused = 0
        self.closes = collections.Counter()
        self.rest_answers = collections.Counter()
        self.stopping = False
        self.held_sending = False       # admin: stop the market without closing anything
        self.faults = Faults(self)
        self.oracle = Oracle(self)
        self.tasks, self.endpoints, self.ca_file = [], {}, ""

    def clock(self):
        return time.monotonic()

    def wall_ms(self):
        return time.time_ns() // 1_000_000

    def next_identity(self):
        self.identities += 1
        return self.identities

    def venue_throttle(self):
        """The Throttle of every connection, or None where the venue has no limit on the rate."""
        above = self.config.throttle_above
        return Throttle(self.clock(), messages_per_s=above, drop_after_s=self.config.throttle_drop_s) if above else None

    def streams(self):
        return [stream for side in self.sides.values() for stream in side.streams.values()]

    def quiet_s(self):
        """Seconds since somebody subscribed last."""
        return self.clock() - self.subscribed_at

    # -- life ------------------------------------------------------------------------------------------------
    async def start(self):
        options = SideOptions(self.config)
        for name in self.config.captures or self.config.venues:
            self.sides[name] = load(name)(self, options)
        for name, path in self.config.captures.items():
            self.players.append(Player(self, self.sides[name], path))
        if not self.playing:
            for side in self.sides.values():
                side.listing(self.config.instruments)
                market.generate(list(side.instruments.values()), self.config.seed, self.config.levels, side.contiguous)
        await self.listen()
        self.tasks.append(asyncio.create_task(self.keep_time()))
        self.tasks += [asyncio.create_task(self.play(player)) for player in self.players]
        if not self.playing:
            self.tasks.append(asyncio.create_task(self.send_market()))

    async def listen(self):
        self.temporary = None if self.config.directory else tempfile.mkdtemp(prefix="feedhandler-simulate-")
        directory = self.config.directory or self.temporary
        pathlib.Path(directory).mkdir(parents=True, exist_ok=True)
        context = None
        if self.config.tls:
            context, self.ca_file = certificates.write(directory)
        self.ssl_context = context
        await self.open_port(self.config.port)
        self.port = self.server.sockets[0].getsockname()[1]
        application = aiohttp.web.Application(client_max_size=1 << 20)
        application.router.add_route("*", "/{tail:.*}", self.http)
        self.runner = aiohttp.web.AppRunner(application, access_log=None, shutdown_timeout=0.5)
        await self.runner.setup()
        site = aiohttp.web.TCPSite(self.runner, self.config.host, self.config.rest_port, ssl_context=context)
        await site.start()
        self.rest_port = self.runner.addresses[0][1]
        secure = "s" if self.config.tls else ""
        self.admin = f"http{secure}://{self.config.host}:{self.rest_port}/_sim"
        for name, side in self.sides.items():
            base = f"{self.config.host}:{self.port}/{name}"
            self.endpoints[name] = {"urls": {key: f"ws{secure}://{base}{path}" for key, path in side.paths.items()},
                                    "rest": f"http{secure}://{self.config.host}:{self.rest_port}/{name}"}

    async def open_port(self, port):
        self.server = await picows.ws_create_server(self.accept, self.config.host, port, ssl=self.ssl_context, enable_auto_pong=False,
                                                    websocket_handshake_timeout=5, max_frame_size=1 << 20, reuse_address=True)

    async def stop(self):
        """Send what is queued, close every connection (1001), end every task, close both ports."""
        self.held_sending = True
        deadline = self.clock() + STOP_DRAIN_S
        while any(connection.backlog() and not connection.held() for connection in self.connections) and self.clock() < deadline:
            self.flush()
            await asyncio.sleep(TURN_S)
        self.stopping = True
        for task in self.tasks:
            task.cancel()
        failed = [result for result in await asyncio.gather(*self.tasks, return_exceptions=True)
                  if isinstance(result, Exception)]
        self.server.close()
        await self.say_goodbye()
        await self.runner.cleanup()
        if self.temporary:
            shutil.rmtree(self.temporary)
        if failed:
            raise failed[0]

    async def say_goodbye(self):
        leaving = list(self.connections)
        for connection in leaving:
            connection.close(1001, "the simulator stops")
        waits = [asyncio.create_task(connection.transport.wait_disconnected()) for connection in leaving]
        if waits:
            done, late = await asyncio.wait(waits, timeout=STOP_DRAIN_S)
            for task in late:
                task.cancel()
            for connection in list(self.connections):
                connection.transport.underlying_transport.abort()

    async def refuse_tcp(self, seconds):
        """No port at all for so long: connection attempts are refused by the kernel."""
        self.server.close()
        await asyncio.sleep(seconds)
        if not self.stopping:
            await self.open_port(self.port)

    # -- accepting -------------------------------------------------------------------------------------------
    def accept(self, request):
        url = urllib.parse.urlparse(request.path.decode())
        name, _, rest = url.path.lstrip("/").partition("/")
        side = self.sides.get(name)
        endpoint = side and self.endpoint_of(side, "/" + rest)
        if endpoint is None:
            return self.refusal(Reply(b"no such endpoint", 404))
        refused = Reply(b"refused by the simulator", 503) if self.clock() < self.faults.refused_until.get(name, 0) else None
        refused = refused or side.admit(self.clock())
        if refused:
            self.connections_refused += 1
            return self.refusal(refused)
        return Connection(self, side, endpoint, "/" + rest, dict(urllib.parse.parse_qsl(url.query)))

    def endpoint_of(self, side, path):
        """The endpoint of a URL path: exact, or for raw streams the one whose path ends in /ws instead of /stream."""
        for key, known in side.paths.items():
            if path == known or path.rstrip("/") == known or known.endswith("/stream") and path.startswith(known[:-7] + "/ws"):
                return key
        return None

    def refusal(self, reply):
        response = picows.WSUpgradeResponse.create_error_response(reply.status, reply.body, reply.headers)
        return picows.WSUpgradeResponseWithListener(response, None)

    # -- REST ------------------------------------------------------------------------------------------------
    async def http(self, request):
        name, _, rest = request.path.lstrip("/").partition("/")
        if name == "_sim":
            return await self.admin_request(rest, request)
        side = self.sides.get(name)
        until, status = self.faults.rest_error_until.get(name, (0, 0))
        if side is None:
            reply = Reply(b"no such venue", 404)
        elif self.clock() < until:
            reply = Reply(b"refused by the simulator", status, {"Retry-After": "1"})
        else:
            reply = side.rest("/" + rest, dict(request.query), self.clock())
            if inspect.isawaitable(reply):
                reply = await reply
        self.rest_answers[f"{name}: {reply.status}"] += 1
        return aiohttp.web.Response(body=reply.body, status=reply.status, headers=reply.headers, content_type="application/json")

    def depth_snapshot(self, side, instrument, limit, headers):
        """An awaitable Reply: the recorded book, or the synthetic one as it is now, answered a little later."""
        if self.playing:
            player = next(player for player in self.players if player.side is side)
            return player.depth(instrument, headers)
        return self.synthetic_depth(side, instrument, limit, headers)

    async def synthetic_depth(self, side, instrument, limit, headers):
        pause = self.config.snapshot_pause_s
        if pause:
            instrument.paused_until = self.clock() + self.config.snapshot_delay_s + pause
        position = instrument.position
        cycle, index = divmod(position, len(instrument.loop))
        event = instrument.loop[index]
        # Every other snapshot falls inside the next event: its first levels are in it, and so are their update ids.
        extra = len(instrument.snapshots) % 2 if len(event.levels) > 1 and index < len(instrument.loop) - 1 else 0
        sides = instrument.book(position)
        market.apply(sides, event.levels[:extra])
        last = instrument.sequence_start + cycle * instrument.span + event.first + extra - 1 if extra else instrument.sequence(position)
        instrument.snapshots.append((position, extra, last))
        body = side.depth_body(instrument, sorted(sides[0].items(), reverse=True)[:limit], sorted(sides[1].items())[:limit], last)
        await asyncio.sleep(self.config.snapshot_delay_s)
        return Reply(body, headers=headers)

    async def admin_request(self, what, request):
        try:
            answer = await self.administer(what, request)
        except (FaultError, TypeError, ValueError) as problem:
            return aiohttp.web.json_response({"error": str(problem)}, status=400)
        if answer is None:
            return aiohttp.web.json_response({"error": f"/_sim/{what} is not known; use usage, report, oracle, fault, faults, hold, refuse"}, status=404)
        return aiohttp.web.json_response(answer)

    async def administer(self, what, request):
        if what == "fault" and request.method == "POST":
            fields = await request.json()
            return {"id": self.faults.add(**fields).identity}
        if what == "hold":
            self.held_sending = request.query.get("on", "1") == "1"
            return {"held": self.held_sending}
        if what == "refuse":
            self.tasks.append(asyncio.create_task(self.refuse_tcp(float(request.query.get("seconds", "1")))))
            return {}
        if what == "clear":
            self.faults.clear()
            return {}
        answers = {"usage": self.usage.document, "report": self.report, "oracle": self.documents, "faults": self.faults.document}
        return answers[what]() if what in answers else None

    # -- subscriptions ---------------------------------------------------------------------------------------
    def activate(self, stream, connection):
        stream.connections.append(connection)
        self.faults.arm(stream)
        self.subscription_changes += 1
        self.subscribed_at = self.clock()
        if len(stream.connections) > 1 or stream.render is None or self.playing:
            return
        if stream.slow:
            self.slow_streams.append(stream)
            return
        instrument = stream.instrument
        instrument.streams = sorted([*instrument.streams, stream], key=lambda one: CHANNEL_ORDER.index(one.channel) if one.channel in CHANNEL_ORDER else 9)
        if instrument not in self.active:
            self.active += [instrument] * self.config.heavy.get(instrument.symbol, 1)

    def deactivate(self, stream, connection):
        stream.connections.remove(connection)
        self.subscription_changes += 1
        if stream.connections or stream.render is None or self.playing:
            return
        if stream.slow:
            self.slow_streams.remove(stream)
            return
        stream.instrument.streams = [one for one in stream.instrument.streams if one is not stream]
        if not stream.instrument.streams:
            self.active = [one for one in self.active if one is not stream.instrument]

    # -- sending ---------------------------------------------------------------------------------------------
    def send(self, stream, payload, position):
        """Queue one frame for every connection of its stream."""
        size = len(payload)
        head = HEADERS[size] if size < 4096 else header(size)
        for connection in stream.connections:
            if stream.faults or (self.faults.held and (connection, stream.wire) in self.faults.held):
                connection.out.append(self.faults.deliver(stream, connection, self.shape(stream, connection, payload), position))
            elif connection.raw and stream.prefix_size:
                body = self.shape(stream, connection, payload)
                connection.out += (header(len(body)), body)
            else:
                connection.out += (head, payload)
            self.frames_sent += 1

    def shape(self, stream, connection, payload):
        """The frame as this connection gets it: without the combined wrapper on a raw one."""
        return payload[stream.prefix_size:-1] if connection.raw and stream.prefix_size else payload

    def step(self, instrument, now_ms):
        """Publish the instrument's next event on all its streams."""
        position = instrument.position
        cycle, index = divmod(position, len(instrument.loop))
        for stream in instrument.streams:
            payload = stream.render(index, cycle, now_ms)
            if payload is not None:
                self.send(stream, payload, position)
        instrument.position = position + 1
        self.events += 1

    def steps(self, count, frames_max):
        """Up to `count` events of the instruments in turn, or until so many frames are queued. A paused one is passed over."""
        now, now_ms = self.clock(), self.wall_ms()
        until = self.frames_sent + frames_max
        for _ in range(count):
            if not self.active or self.frames_sent >= until:
                return
            self.turn += 1
            instrument = self.active[self.turn % len(self.active)]
            if instrument.paused_until <= now:
                self.step(instrument, now_ms)

    def market_rate(self):
        """Messages a second the synthetic market makes now."""
        if not self.config.rate_each:
            return self.config.rate
        return self.config.rate_each * sum(len(stream.connections) for instrument in set(self.active) for stream in instrument.streams)

    async def send_market(self):
        """The synthetic market at its rate, or at full speed with back-pressure."""
        started, base, rate = self.clock(), 0, 0.0
        full = self.config.speed == "max"
        while True:
            if full:
                if not self.held_sending and not self.blocked():
                    self.steps(BURST_STEPS, TURN_FRAMES_MAX)
                    self.flush()
                await asyncio.sleep(0 if self.active else TURN_S)
                continue
            now = self.clock()
            due = base + (now - started) * rate - self.frames_sent
            if self.held_sending or not self.active or rate != self.market_rate() or due > rate * CATCH_UP_S + TURN_FRAMES_MAX:
                started, base, rate = now, self.frames_sent, self.market_rate()
            elif due >= 1:
                self.steps(TURN_FRAMES_MAX, min(int(due), TURN_FRAMES_MAX))
                self.flush()
            await asyncio.sleep(TURN_S)

    def flush(self):
        for connection in self.connections:
            if connection.out or connection.throttle:
                connection.flush()

    def blocked(self):
        return any(connection.paused and connection.streams and not connection.held() for connection in self.connections)

    async def keep_time(self):
        """Heartbeats, lifetimes, slow channels, slow readers."""
        second, slow_next = 0, self.clock() + SLOW_S
        while True:
            now = self.clock()
            for connection in list(self.connections):
                if not connection.half_open and not connection.closing:
                    self.tick(connection, now)
            if now >= slow_next:
                second, slow_next = second + 1, slow_next + SLOW_S
                self.send_slow(second)
            self.flush()
            await asyncio.sleep(TICK_S)

    def tick(self, connection, now):
        age = now - connection.opened_at
        connection.side.tick(connection, now)
        if age >= self.config.lifetime_s:
            connection.close(1001, "lifetime over")
        elif age >= self.config.lifetime_s - self.config.notice_s and not connection.notice_sent:
            connection.notice_sent = True
            connection.side.shutdown_notice(connection)
        elif self.is_too_slow(connection, now):
            connection.out.clear()
            connection.side.slow_reader(connection)

    def is_too_slow(self, connection, now):
        """More is unread, or held back, than the venue keeps for one connection."""
        throttle = connection.throttle
        if not throttle and (not connection.out or self.config.speed == "max"):
            return False
        return connection.backlog() > self.config.backlog_max or bool(throttle) and throttle.must_drop(now)

    def send_slow(self, second):
        now_ms = self.wall_ms()
        for stream in list(self.slow_streams):
            payload = stream.render(stream.instrument.position if stream.instrument else 0, second, now_ms)
            if payload is not None:
                self.send(stream, payload, second)

    # -- captures --------------------------------------------------------------------------------------------
    async def play(self, player):
        speed = 0 if self.config.speed == "max" else float(self.config.speed)
        await player.play(speed, self.config.wait_subscriptions)
        if self.config.close_at_end:
            for connection in [one for one in self.connections if one.side is player.side]:
                connection.close(1001, "the capture is over")

    async def wait_finished(self):
        """Until every capture has been played; raises what ended a player early."""
        waits = [asyncio.create_task(player.finished.wait()) for player in self.players]
        try:
            await asyncio.wait([asyncio.gather(*waits), *self.tasks], return_when=asyncio.FIRST_COMPLETED)
            for task in self.tasks:
                if task.done() and not task.cancelled() and task.exception():
                    raise task.exception()
            await asyncio.gather(*waits)
        finally:
            for wait in waits:
                wait.cancel()

    # -- reports ---------------------------------------------------------------------------------------------
    def documents(self):
        """The oracle's documents, one a venue."""
        return {name: self.oracle.document(name) for name in self.sides}

    def report(self):
        return {"frames_sent": self.frames_sent, "bytes_sent": self.bytes_sent, "events": self.events, "client_frames": self.client_frames,
                "connections": len(self.connections), "connections_opened": self.connections_opened, "connections_refused": self.connections_refused,
                "subscriptions": sum(len(connection.streams) for connection in self.connections), "closes": dict(self.closes),
                "rest": dict(self.rest_answers), "usage": self.usage.document(), "faults": self.faults.document(),
                "bans": {name: {"count": side.ban.count, "attempts_inside": side.ban.attempts_inside} for name, side in self.sides.items()},
                "captures": [player.document() for player in self.players], "finished": all(player.finished.is_set() for player in self.players)}

    def feedhandler_config(self, name="simulated", workers=1):
        """A configuration for `feedhandler start` that reads from this simulator."""
        lines = ["[instance]", f"name = {json.dumps(name)}", f"workers = {workers}", ""]
        for venue, ends in self.endpoints.items():
            lines += [f"[venues.{venue}]", f"rest = {json.dumps(ends['rest'])}"]
            lines += [f"ca_file = {json.dumps(os.path.abspath(self.ca_file))}"] if self.ca_file else []
            lines += ["", f"[venues.{venue}.urls]"] + [f"{json.dumps(key)} = {json.dumps(url)}" for key, url in ends["urls"].items()] + [""]
        for venue, side in self.sides.items():
            lines += ["[[subscribe]]", f"venue = {json.dumps(venue)}", f"symbols = {json.dumps(list(side.instruments))}",
                      'channels = ["trade", "quote", "book"]', ""]
        return "\n".join(lines)


@contextlib.asynccontextmanager
async def running(**fields):
    """A simulator for the length of a block."""
    simulator = Simulator(SimulatorConfig(**fields))
    await simulator.start()
    try:
        yield simulator
    finally:
        await simulator.stop()
