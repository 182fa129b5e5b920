"""A world on one simulated clock: workers, their supervisor, venues and the network between them. No loop, no socket, no sleep.

Real: Worker, Link, the state machines of stream.py, Moves, Publisher with its rings and `state`, the venues' files, the planner,
the mover, budgets, and the reader that checks what was published. Simulated: time, sockets, the venues' side of them, and
the supervisor's shell, which is as thin as it can be. The same seed gives the same run.

What the reader holds against the venues' tapes: each event once, in order, from one owner at a time; what is missing was
announced by a GAP, and a fault excuses it. Anything else is a failure, and an error nobody expected ends the run.
"""
import collections
import concurrent.futures
import contextlib
import copy
import dataclasses
import heapq
import json
import os
import random
import struct
import tempfile
import time

import feedhandler
from feedhandler import control, reader, venues
from feedhandler.capacity import moves, plan, rollover
from feedhandler.capacity.budget import Budget, Credits
from feedhandler.capacity.limits import STANDBY, NoLoad
from feedhandler.capacity.profile import Profile, Window, merge
from feedhandler.simulate import limits
from feedhandler.supervisor import tables
from feedhandler.supervisor.shard import TRANSIT_S
from feedhandler.venue import CHANNELS, Channel
from feedhandler.worker.link import NEVER
from feedhandler.worker.stream import DELIVERS
from feedhandler.worker.worker import Worker, WorkerOptions

MS, SECOND, MINUTE, HOUR, DAY = 10**6, 10**9, 60 * 10**9, 3600 * 10**9, 86_400 * 10**9
RESET, SNAPSHOT = (bit for name in ("RESET", "SNAPSHOT") for bit, other in reader.FLAGS.items() if other == name)
TO_WORKER, FROM_WORKER = control.Decoder(control.TO_WORKER), control.Decoder(control.FROM_WORKER)
SLOTS, ROWS, LEVELS = 1 << 13, 512, 64
RING_STATE_AT, RING_LIVE = 140, 1    # fh_ring.state, and the state a killed writer leaves behind
CONTROL_NS = 300_000                 # between a worker and its supervisor
NOTICED_NS, FORKED_NS = 3 * MS, 10 * MS     # a worker's death, and then its successor
KEEPALIVE_NS = 4 * SECOND            # the kernel gives a half-open connection up
REPLAN_S = 2.0
PERMIT_NS, PERMIT_PAUSE_NS = int(TRANSIT_S * SECOND), SECOND // 4
FIRST = 100                          # number of the first event of every tape
UNREAD_MAX = 1000                    # turns of workers between two looks of the reader: fewer records than a ring holds
WINDOW = 8                           # levels of a book: change n sets the level n % WINDOW to size n


class Time:
    """One clock, and whatever is due. Everything random comes from its seed."""

    def __init__(self, seed):
        self.rng = random.Random(seed)
        self.now = 0
        self.heap, self.count = [], 0
        begin_ns = time.time_ns()
        self.real_ns = begin_ns - begin_ns % SECOND      # whole seconds, so that milliseconds fall alike in every run
        self.mono_ns = time.monotonic_ns() - begin_ns % SECOND

    def monotonic_ns(self):
        return self.mono_ns + self.now

    def time_ns(self):
        return self.real_ns + self.now

    def after(self, delay_ns, step, *arguments):
        self.count += 1
        heapq.heappush(self.heap, (self.now + delay_ns, self.count, step, arguments))

    def run(self, for_ns):
        """Let this much time pass."""
        until = self.now + for_ns
        while self.heap and self.heap[0][0] <= until:
            self.now, _, step, arguments = heapq.heappop(self.heap)
            step(*arguments)
        self.now = until

    def run_until(self, condition, for_ns, step_ns=SECOND // 4):
        """Let time pass until the condition holds, at most so long. Whether it does."""
        until = self.now + for_ns
        while not condition() and self.now < until:
            self.run(step_ns)
        return condition()


# -- venues -----------------------------------------------------------------------------------------------------------

def levels(number):
    """[(price, size)] of the book after change `number`: the newest WINDOW changes, each at its own price."""
    return [(1000 + change % WINDOW, change) for change in range(number - WINDOW + 1, number + 1)]


class Deribit:
    """The venue's own words; books start in band."""
    name = "deribit"
    channels = {"v2": ("trade", "book", "ticker")}

    @staticmethod
    def symbol(number):
        return f"T{number}_USDC-PERPETUAL"

    @staticmethod
    def event(wire, symbol, channel, number, ms):
        head = f'{{"jsonrpc":"2.0","method":"subscription","params":{{"channel":"{wire}","data":'
        if channel == "trade":
            return (f'{head}[{{"trade_seq":{number},"trade_id":"{number}","timestamp":{ms},"price":100.5,"instrument_name":"{symbol}",'
                    f'"direction":"buy","amount":10}}]}}}}').encode()
        if channel == "ticker":
            return (f'{head}{{"timestamp":{ms},"last_price":100.5,"mark_price":{number / 10},"instrument_name":"{symbol}"}}}}}}').encode()
        return (f'{head}{{"type":"change","timestamp":{ms},"instrument_name":"{symbol}","change_id":{number},"prev_change_id":{number - 1},'
                f'"bids":[["change",{(1000 + number % WINDOW) / 10},{number}]],"asks":[]}}}}}}').encode()

    @staticmethod
    def snapshot(wire, symbol, number, ms):
        bids = ",".join(f'["new",{price / 10},{size}]' for price, size in levels(number))
        return (f'{{"jsonrpc":"2.0","method":"subscription","params":{{"channel":"{wire}","data":{{"type":"snapshot","timestamp":{ms},'
                f'"instrument_name":"{symbol}","change_id":{number},"bids":[{bids}],"asks":[["new",200.0,1]]}}}}}}').encode()

    @staticmethod
    def request(message):
        """("subscribe", "unsubscribe" or "", id, wires)."""
        return message["method"].removeprefix("public/"), message["id"], message["params"].get("channels", [])

    @staticmethod
    def answer(id, wires):
        return json.dumps({"jsonrpc": "2.0", "id": id, "result": list(wires) or "ok"}).encode()

    @staticmethod
    def refusal(id, reason):
        return json.dumps({"jsonrpc": "2.0", "id": id, "error": {"code": 11050, "message": reason}}).encode()

    @staticmethod
    def notice():
        return b'{"jsonrpc":"2.0","method":"subscription","params":{"channel":"platform_state","data":{"maintenance":true}}}'


class BinanceUsdm:
    """The venue's own words; books start from REST, and two classes of addresses share an instrument's streams."""
    name = "binance-usdm"
    channels = {"usdm.public": ("trade", "book"), "usdm.market": ("mark",)}

    @staticmethod
    def symbol(number):
        return f"T{number}USDT"

    @staticmethod
    def event(wire, symbol, channel, number, ms):
        head = f'{{"stream":"{wire}","data":{{'
        if channel == "trade":
            return f'{head}"e":"trade","E":{ms},"T":{ms},"s":"{symbol}","t":{number},"p":"100.5","q":"10","X":"MARKET","m":true}}}}'.encode()
        if channel == "mark":
            return f'{head}"e":"markPriceUpdate","E":{ms},"s":"{symbol}","p":"{number / 10}","i":"100.5","P":"100.5","r":"0.0001","T":{ms}}}}}'.encode()
        return (f'{head}"e":"depthUpdate","E":{ms},"T":{ms},"s":"{symbol}","U":{number},"u":{number},"pu":{number - 1},'
                f'"b":[["{(1000 + number % WINDOW) / 10}","{number}"]],"a":[]}}}}').encode()

    @staticmethod
    def body(number, ms):
        """Of a REST snapshot."""
        bids = ",".join(f'["{price / 10}","{size}"]' for price, size in levels(number))
        return f'{{"lastUpdateId":{number},"E":{ms},"T":{ms},"bids":[{bids}],"asks":[["200.0","1"]]}}'.encode()

    @staticmethod
    def request(message):
        return message["method"].lower(), message["id"], message["params"]

    @staticmethod
    def answer(id, wires):
        return json.dumps({"result": None, "id": id}).encode()

    @staticmethod
    def refusal(id, reason):
        return json.dumps({"error": {"code": 2, "msg": reason}, "id": id}).encode()

    @staticmethod
    def notice():
        return b'{"stream":"!serverShutdown","data":{"e":"serverShutdown","E":1}}'


class Tape:
    """All a venue ever said of one stream, numbered; when, as long as nobody has read it."""

    def __init__(self, market, endpoint, wire, channel):
        self.market, self.endpoint, self.wire, self.channel = market, endpoint, wire, channel
        self.number = FIRST
        self.said, self.first = collections.deque((0,)), FIRST    # times of first, first + 1, …
        self.sockets = {}            # Socket → None: who is subscribed
        self.busy_until = 0

    def speak(self, now, ms):
        self.number += 1
        self.said.append(now)
        if self.sockets:
            payload = self.market.dialect.event(self.wire, self.market.symbol, self.channel, self.number, ms)
            for socket in self.sockets:
                socket.arrive(payload)

    def when(self, number):
        return self.said[number - self.first]

    def read_to(self, number):
        """Nobody will ask for times before this one again."""
        for _ in range(min(number - self.first, len(self.said) - 1)):
            self.said.popleft()
            self.first += 1


class Market:
    """One instrument of a venue. Its streams speak at once, seldom; those that somebody joins or leaves often, for a while."""

    def __init__(self, exchange, id, symbol):
        self.exchange, self.world, self.dialect = exchange, exchange.world, exchange.dialect
        self.id, self.symbol = id, symbol
        self.tapes = {}              # wire → Tape
        self.busy_until = self.due_ns = 0
        self.turn = 0

    def begin(self):
        self.schedule(int(self.world.rng.random() * self.exchange.idle_ns))

    def schedule(self, delay_ns):
        self.turn += 1
        self.due_ns = self.world.now + delay_ns
        self.world.after(delay_ns, self.speak, self.turn)

    def speak(self, turn):
        if turn != self.turn:
            return
        world = self.world
        ms = world.time_ns() // MS
        busy = world.now < self.busy_until
        for tape in self.tapes.values():
            if not busy or world.now < tape.busy_until:
                tape.speak(world.now, ms)
        self.schedule(int((self.exchange.busy_ns if busy else self.exchange.idle_ns) * (0.5 + world.rng.random())))

    def wake(self, tape, for_ns):
        """Somebody came or left."""
        tape.busy_until = max(tape.busy_until, self.world.now + for_ns)
        self.busy_until = max(self.busy_until, tape.busy_until)
        if self.due_ns > self.world.now + self.exchange.busy_ns:
            self.schedule(self.exchange.busy_ns)


class Address:
    """One class of addresses of a venue: its limits, enforced and counted."""

    def __init__(self, usage, venue, endpoint, profile):
        name = f"{venue}/{endpoint}"
        conn, sub, client = (profile.get(key) or {} for key in ("conn", "sub", "client_msg"))
        self.open = limits.Gauge(usage.meter(f"{name}: connections open", conn.get("max_open") or 10**9))
        self.streams = usage.meter(f"{name}: streams of a connection", sub.get("max_per_conn") or 10**9)
        self.attempts = [limits.Window(usage.meter(f"{name}: attempts in {row['per_s']} s", row["n"]), row["per_s"]) for row in conn.get("attempts") or ()]
        self.messages = [(usage.meter(f"{name}: messages in {row['per_s']} s", row["n"]), row["per_s"]) for row in client.get("windows") or ()]
        self.ban = limits.Ban()
        self.lifetime_s = (profile.get("lifetime") or {}).get("max_s")
        self.ping_s = (profile.get("liveness") or {}).get("server_ping_s")
        self.down_until = 0          # nobody is let in before
        self.opened = []             # when each connection was let in
        self.cuts = 0                # connections that reached the end of their life


class Exchange:
    """The venue's side of every connection."""
    PUNISHED_S = 30.0

    def __init__(self, world, dialect, profiles, usage, idle_ns, busy_ns, busy_for_ns):
        self.world, self.dialect = world, dialect
        self.idle_ns, self.busy_ns, self.busy_for_ns = idle_ns, busy_ns, busy_for_ns
        self.addresses = {endpoint: Address(usage, dialect.name, endpoint, profile) for endpoint, profile in profiles.items()}
        self.markets, self.tapes, self.sockets = {}, {}, {}
        self.deaf = set()            # wires whose subscriptions are acknowledged and then silent
        self.refused = set()         # wires that are refused

    def list(self, market, streams):
        """A market and what can be subscribed of it."""
        self.markets[market.symbol] = market
        for stream in streams:
            self.tapes[stream.wire] = market.tapes[stream.wire] = Tape(market, stream.endpoint, stream.wire, stream.channel)
        market.begin()

    def admits(self, socket):
        """(HTTP status, reason, retry_s) of a connection attempt; 101 is a connection."""
        address, now_s = self.addresses[socket.endpoint], self.world.now / SECOND
        if self.world.now < address.down_until:
            return 503, "maintenance", 0.0
        if address.ban.holds(now_s):
            return 418, "banned", address.ban.retry_after(now_s)
        if not all([window.hit(now_s) for window in address.attempts]) or not address.open.room():
            address.ban.start(now_s, self.PUNISHED_S)
            return 429, "too many connections", self.PUNISHED_S
        return 101, "", 0.0

    def accept(self, socket):
        address = self.addresses[socket.endpoint]
        address.opened.append(self.world.now)
        address.open.open += 1
        self.sockets[socket] = self.world.now
        socket.windows = [limits.Window(meter, per_s) for meter, per_s in address.messages]
        if address.lifetime_s:
            self.world.after(int(address.lifetime_s * SECOND), self.cut, socket)
        if address.ping_s:
            self.world.after(int(address.ping_s * SECOND), self.ping, socket, int(address.ping_s * SECOND))

    def cut(self, socket):
        if socket in self.sockets:
            self.addresses[socket.endpoint].cuts += 1
            self.world.lost(socket)
            socket.hang_up(1001, "24 hours are over")

    def give_notice(self, socket, lead_ns):
        """It will be closed, by and by."""
        socket.arrive(self.dialect.notice())
        self.world.after(lead_ns, self.cut, socket)

    def ping(self, socket, every_ns):
        if socket in self.sockets:
            socket.arrive(b"", ping=True)
            self.world.after(every_ns, self.ping, socket, every_ns)

    def gone(self, socket):
        """The connection has ended, whoever ended it."""
        opened_ns = self.sockets.pop(socket, None)
        if opened_ns is not None:
            self.world.connection_ns += self.world.now - opened_ns
            self.addresses[socket.endpoint].open.open -= 1
            for wire in list(socket.wires):
                self.leave(socket, wire)

    def received(self, socket, text):
        """A client's message."""
        if socket not in self.sockets:
            return
        if not all([window.hit(self.world.now / SECOND) for window in socket.windows]):
            self.world.lost(socket)
            socket.hang_up(1008, "too many requests")
            return
        verb, id, wires = self.dialect.request(json.loads(text))
        if verb == "subscribe" and self.refused.intersection(wires):
            socket.arrive(self.dialect.refusal(id, "refused"))
            return
        socket.arrive(self.dialect.answer(id, wires))
        for wire in wires:
            if verb == "subscribe" and wire in self.deaf:
                self.world.excuse(self.tapes[wire].market.id)     # at a quiet moment nobody can tell it from a quiet stream
            elif verb == "subscribe":
                self.join(socket, wire)
            elif verb == "unsubscribe":
                self.leave(socket, wire)

    def join(self, socket, wire):
        tape, address = self.tapes[wire], self.addresses[socket.endpoint]
        if wire in socket.wires:
            return
        socket.wires[wire] = tape.sockets[socket] = None
        if not address.streams.note(len(socket.wires)):
            self.world.lost(socket)
            socket.hang_up(1008, "too many streams")
        elif tape.channel == "book" and hasattr(self.dialect, "snapshot"):
            socket.arrive(self.dialect.snapshot(wire, tape.market.symbol, tape.number, self.world.time_ns() // MS))
        tape.market.wake(tape, self.busy_for_ns)

    def leave(self, socket, wire):
        if wire in socket.wires:
            tape = self.tapes[wire]
            del socket.wires[wire], tape.sockets[socket]
            tape.market.wake(tape, SECOND)

    def body(self, symbol):
        """Of a REST snapshot, as of now."""
        tape = next(tape for tape in self.markets[symbol].tapes.values() if tape.channel == "book")
        return self.dialect.body(tape.number, self.world.time_ns() // MS)


# -- the network ------------------------------------------------------------------------------------------------------

class Socket:
    """One WebSocket: to the Link it is its Session, to the Exchange its client. Either side may vanish."""

    def __init__(self, world, worker, link):
        self.world, self.worker, self.link = world, worker, link
        self.exchange, self.endpoint = world.exchanges[link.plan.venue], link.plan.endpoint
        self.frames, self.frame_ns_last = 0, 0
        self.wires = {}              # what the venue serves on it
        self.is_open, self.is_stalled = True, False
        self.latency_ns = int((0.5 + 20 * world.rng.random() ** 2) * MS)
        self.arrives_ns = 0          # of the frame behind which the next one comes
        world.after(3 * self.latency_ns, self.knock)

    def knock(self):
        """The handshake arrives at the venue."""
        if not self.is_open or self.worker.is_dead:
            return
        status, reason, retry_s = self.exchange.admits(self)
        if status == 101:
            self.exchange.accept(self)
        self.world.after(self.latency_ns, self.answered, status, reason, retry_s)

    def answered(self, status, reason, retry_s):
        if not self.is_here():
            return
        self.link.task = None
        if status == 101:
            self.link.opened(self)
        else:
            self.is_open, self.link.session = False, None
            self.link.tell(self.link.connection.connect_failed, status, reason, retry_s)
        self.worker.settle()

    def is_here(self):
        return self.is_open and not self.worker.is_dead

    def is_well(self, wire):
        """Whether what the venue says of this stream arrives."""
        return self.is_here() and not self.is_stalled and wire in self.wires and self in self.exchange.sockets

    # -- from the venue --------------------------------------------------------------------------------------------

    def arrive(self, payload, ping=False):
        """A frame is on its way; frames of a connection never overtake each other."""
        self.arrives_ns = max(self.arrives_ns, self.world.now + self.latency_ns + int(self.world.rng.random() * self.world.jitter_ns))
        self.world.after(self.arrives_ns - self.world.now, self.deliver, payload, ping)

    def deliver(self, payload, ping):
        if not self.is_here() or self.is_stalled:
            return
        worker, link = self.worker, self.link
        self.frames += 1
        self.frame_ns_last = self.world.time_ns()
        self.world.note_turn()
        if ping:
            link.ping(self, payload)
        else:
            publisher = worker.publisher
            if publisher.feed(link.venue, self.link.index, payload, self.frame_ns_last) <= 0 and publisher.last_frame()[3]:
                link.control(self, payload)
            publisher.turn(self.world.monotonic_ns())
            if publisher.notice_count:
                worker.notices()
        if link.connection.stale:
            link.tick(self.world.monotonic_ns())
        worker.settle()

    def hang_up(self, code, reason):
        """The venue, or the network, ends it."""
        self.exchange.gone(self)
        self.world.after(self.latency_ns, self.ended, code, reason)

    def ended(self, code, reason):
        if self.is_here():
            self.is_open = False
            self.link.closed(self, code, reason)
            self.worker.settle()

    def half_open(self):
        """Nothing goes through any more, and nobody is told; then the kernels give up."""
        self.is_stalled = True
        self.world.after(KEEPALIVE_NS, self.ended, 1006, "the socket was reset")
        self.world.after(KEEPALIVE_NS, self.exchange.gone, self)

    # -- from the link: what it asks of a Session --------------------------------------------------------------------

    def send(self, text):
        if not self.is_stalled:
            self.world.after(self.latency_ns, self.exchange.received, self, text)

    def send_ping(self, payload):
        if not self.is_stalled and self in self.exchange.sockets:
            self.arrive(b"", ping=False)

    def send_pong(self, payload):
        """Nobody looks: pings stand for the venue's signs of life."""

    def close(self, code, reason):
        """What is wanted still and not carried beside has a hole: the worker could not wait for another connection."""
        self.world.lost(self)
        if not self.is_stalled:
            self.world.after(self.latency_ns, self.hang_up, code, reason)

    def abort(self):
        self.is_open = False
        self.world.after(self.latency_ns, self.exchange.gone, self)

    def cancel(self):
        """As the task that connects: nothing more to do, the socket is not open any more."""

    def is_dead(self):
        return False


# -- workers ----------------------------------------------------------------------------------------------------------

class Peer:
    """A worker's end of its control connection."""

    def __init__(self, supervisor, number):
        self.supervisor, self.number = supervisor, number

    def say(self, message):
        self.supervisor.world.after(CONTROL_NS, self.supervisor.hear, self.number, control.encode(message))

    def unsent(self):
        return 0


class SimulatedWorker(Worker):
    """A Worker that is called when something is due, instead of every 5 ms."""

    def __init__(self, world, number):
        self.world, self.is_dead = world, False
        super().__init__(WorkerOptions(world.directory, "simulated", number, slot_count=SLOTS, row_max=ROWS, level_max=LEVELS), clock=world)
        self.next_look_ns = self.next_report_ns = self.next_ask_ns = NEVER
        self.patience_ns = SECOND    # between two requests for permits; grows while none comes
        self.waited_ns = MS          # grows while what is looked for does not come
        self.done = concurrent.futures.Future()

    def dial(self, link, url):
        return (socket := Socket(self.world, self, link)), socket

    def soon(self, step):
        self.world.after(0, self.alive, self.attempt, step)

    def later(self, delay_s, step):
        self.world.after(int(delay_s * SECOND), self.alive, step)
        return step

    def random(self):
        return random.Random(self.world.rng.getrandbits(64))

    def exception(self, error):
        self.world.errors.append(error)

    def alive(self, step, *arguments):
        if not self.is_dead:
            step(*arguments)
            self.settle()

    def hear(self, data):
        message, = TO_WORKER.feed(data)
        self.waited_ns = MS
        if self.has_private and not self.is_dead:
            self.turn()              # what is held in private is as old as it would be
        self.alive(self.message, self.peers[-1] if self.peers else None, message)

    def touched(self, link):
        """Arm the link's timer. How busy a connection is nobody asks here: it would be a deadline a second."""
        super().touched(link)
        if link.connection.second_ns is not None:
            link.connection.second_ns = NEVER
            link.due_ns = link.connection.next_deadline() or NEVER
            if link.second_lines:    # what does not come soon is looked for more seldom
                before, waited_ns = getattr(link, "waits_for", (None, 0))
                link.waits_for = list(link.second_lines), min(2 * waited_ns, MINUTE) if before == list(link.second_lines) else self.world.look_ns
                link.due_ns = min(link.due_ns, self.world.monotonic_ns() + link.waits_for[1])
        self.arm(link)

    def arm(self, link):
        armed = getattr(link, "armed_ns", NEVER)
        if link.due_ns < armed:
            link.armed_ns = link.due_ns
            self.world.after(max(0, link.due_ns - self.world.monotonic_ns()), self.link_due, link, link.due_ns)

    def link_due(self, link, at):
        if self.is_dead or link.armed_ns != at:
            return
        link.armed_ns = NEVER
        now = self.world.monotonic_ns()
        if link.due_ns <= now:
            self.turn()
            link.tick(now)
        self.arm(link)
        self.settle()

    def turn(self):
        """As every few milliseconds: what is due in the publisher. It writes a CLOCK record where a second has passed."""
        self.publisher.turn(self.world.monotonic_ns())
        self.world.note_turn()

    def settle(self):
        """After anything happened here: notices, and timers for what must be looked at again."""
        if self.is_dead:
            return
        if self.publisher.notice_count:
            self.notices()
        moves = self.moves
        if self.next_look_ns == NEVER and (moves.lingering or moves.letting_go or (self.has_private and self.unready())):
            self.waited_ns = min(2 * self.waited_ns, MINUTE)      # what does not come soon is looked for more seldom
            self.next_look_ns = self.world.now + (5 * MS if moves.letting_go else max(self.world.look_ns, self.waited_ns // 20))
            self.world.after(self.next_look_ns - self.world.now, self.look)
        if self.next_ask_ns == NEVER and any(link.connection.wants_permit(kind) for (_, _, kind), waiting in self.waiting.items() for link in waiting):
            self.next_ask_ns = self.world.now + self.patience_ns
            self.world.after(self.patience_ns, self.ask_now, self.patience_ns)
        if self.next_report_ns == NEVER and ((self.reported and self.peers) or any(link.is_down() for link in self.retiring)):
            self.next_report_ns = self.world.now + self.world.settings.report_ns
            self.world.after(self.world.settings.report_ns, self.report_now)

    def unready(self):
        """Whether something held in private was not told to be ready, or is so no more."""
        ready = self.moves.ready
        held = self.moves.private()
        return any(ready.get(instrument) is None for instrument in held) or any(
            stream.state != "HELD" and stream.state != "ACKED" for streams in held.values() for _, stream in streams)

    def look(self):
        self.next_look_ns = NEVER
        if not self.is_dead:
            self.turn()
            self.moves.tick(self.world.monotonic_ns())
            self.settle()

    def ask_now(self, waited_ns):
        self.next_ask_ns, self.patience_ns = NEVER, min(2 * waited_ns, MINUTE)
        if not self.is_dead:
            self.ask_again(self.world.monotonic_ns())
            self.settle()
            if self.next_ask_ns == NEVER:        # nothing waits any more
                self.patience_ns = SECOND

    def report_now(self):
        self.next_report_ns = NEVER
        self.alive(self.report)

    def kill(self):
        """As kill -9 does: the ring stays as it is, the sockets close, nothing is said."""
        self.is_dead = True
        self.publisher.close()
        with open(f"{self.options.directory}/worker-{self.options.worker}.ring", "r+b") as ring:
            ring.seek(RING_STATE_AT)
            ring.write(struct.pack("<I", RING_LIVE))
        for link in (*self.links.values(), *self.retiring):
            if link.session is not None:
                link.session.abort()


# -- the supervisor -----------------------------------------------------------------------------------------------------

class Supervisor:
    """The shell around what is pure: plan, mover, rollovers, budgets. It saves before it sends, and may die between the two."""

    def __init__(self, world, document=None):
        self.world, self.is_dead, self.dies_unsent = world, False, False
        profiles = world.profiles
        self.mover = moves.Mover(profiles)
        self.ids, self.keys, self.generation = {}, {}, 0     # key → stream id, and back
        self.drained, self.adopted = set(), set()
        self.replan_s = None                         # when to plan again, of itself
        self.ticking = self.granting = False
        self.wants_permit = {}                       # (worker, venue, endpoint, kind) → count
        self.finished = []                           # (step, ok, reason)
        self.saved = document or self.document()
        self.rollovers = Rollovers(self)
        if document is not None:
            self.restore(document)
            self.replan_s = self.now_s() + REPLAN_S      # as when the venues' lists are read again

    # -- what it keeps -----------------------------------------------------------------------------------------------

    def document(self):
        return copy.deepcopy({"placement": self.mover.placement, "mover": json.dumps(self.mover.saved()), "ids": self.ids, "drained": self.drained,
                              "generation": self.generation})

    def restore(self, document):
        document = copy.deepcopy(document)
        self.ids, self.drained, self.generation = document["ids"], document["drained"], document["generation"]
        self.keys = {id: key for key, id in self.ids.items()}
        self.mover.reset(self.world.profiles, document["placement"])
        self.mover.restore(json.loads(document["mover"]), self.now_s())

    def now_s(self):
        return self.world.now / SECOND

    # -- life ----------------------------------------------------------------------------------------------------------

    def begin(self):
        """Every worker that lives is met; those that do not are begun."""
        self.adopted |= {worker.options.worker for worker in self.world.workers if not worker.is_dead}
        self.mover.up |= self.adopted
        for number, worker in enumerate(self.world.workers):
            if worker.is_dead:
                self.mover.went_down(self.now_s(), number)
                self.fork_later(number)
            else:
                worker.peer_came(Peer(self, number))
                worker.settle()
        self.act()

    def die(self):
        """Those whose owner has just died may wait for long."""
        self.is_dead = True
        for instrument in filter(self.world.is_orphan, self.world.by_id):
            self.world.excuse(instrument)
        for worker in self.world.workers:
            for peer in [peer for peer in worker.peers if peer.supervisor is self]:
                worker.peer_left(peer)

    def worker_died(self, number):
        if not self.is_dead:
            self.rollovers.worker_died(number)
            self.wants_permit = {want: count for want, count in self.wants_permit.items() if want[0] != number}
            self.mover.went_down(self.now_s(), number)
            self.act()
            self.fork_later(number)

    def fork_later(self, number):
        self.world.after(FORKED_NS, self.fork, number)

    def fork(self, number):
        if not self.is_dead and self.world.workers[number].is_dead:
            self.world.begin_worker(number).peer_came(Peer(self, number))

    # -- messages --------------------------------------------------------------------------------------------------------

    def say(self, number, message):
        self.world.after(CONTROL_NS, self.world.workers[number].hear, control.encode(message))

    def hear(self, number, data):
        if self.is_dead:
            return
        message, = FROM_WORKER.feed(data)
        getattr(self, "on_" + type(message).__name__.lower())(number, message)
        self.act()

    def on_hello(self, number, message):
        self.tell_shard(number)
        self.say(number, control.Query())
        self.mover.came_up(self.now_s(), number)

    def on_states(self, number, message):
        for state in message.streams:
            key = self.keys.get(state.id)
            if key is not None and (key[3] == STANDBY or self.worker_of(key) != number):
                self.mover.heard_stream(self.now_s(), number, key, state.state, state.reason)
        for session in message.sessions:
            self.rollovers.heard(session)
        if message.full and number in self.adopted:
            self.adopted.discard(number)
            self.mover.heard_lingering(self.now_s(), number, {self.keys.get(id) for id in message.lingering})

    def worker_of(self, key):
        connection = self.mover.connections.get(self.mover.home.get(key))
        return None if connection is None else connection.worker

    def on_ready(self, number, message):
        self.mover.heard_ready(self.now_s(), number, message.instrument, message.floors, message.quiet)

    def on_letgone(self, number, message):
        self.mover.heard_let_gone(self.now_s(), number, message.instrument, message.handover, message.ok, message.reason)

    def on_takenover(self, number, message):
        self.world.counts["take-overs"] += message.ok
        self.mover.heard_taken_over(self.now_s(), number, message.instrument, message.ok, message.reason)

    def on_moved(self, number, message):
        self.mover.heard_moved(self.now_s(), number, self.keys[message.stream], message.connection, message.ok, message.reason)

    def on_closing(self, number, message):
        self.rollovers.replace(message.connection, urgent=True)

    def on_wantpermit(self, number, message):
        want = number, message.venue, message.endpoint, message.kind
        known = self.wants_permit.get(want, 0)
        self.wants_permit[want] = max(known, message.count) if message.again else known + message.count
        self.grant()

    def on_wantsnapshot(self, number, message):
        self.world.after(20 * MS, self.fetched, number, message.stream, message.instrument)

    def on_punished(self, number, message):
        self.world.counts["punished"] += 1
        if message.retry_s:
            self.world.budgets[message.venue, message.endpoint, "connect"].ban(self.world.now + int(message.retry_s * SECOND), message.reason)

    def on_stopped(self, number, message):
        """Nobody is told to stop here."""

    on_exponentraised = on_stopped

    def fetched(self, number, stream, instrument):
        """A REST answer is back: mostly the book, now and then an error."""
        if self.is_dead or self.world.workers[number].is_dead:
            return
        if self.world.rng.random() < self.world.rest_fails:
            self.say(number, control.Snapshot(stream, 503, b"", "HTTP 503"))
            return
        market = self.world.by_id[instrument]
        self.say(number, control.Snapshot(stream, 200, market.exchange.body(market.symbol)))

    def grant(self):
        """What the budgets allow now; the rest is looked at again."""
        for want, count in list(self.wants_permit.items()):
            number, venue, endpoint, kind = want
            granted = self.world.budgets[venue, endpoint, kind].take(self.world.now, count)
            if granted:
                del self.wants_permit[want]
                self.say(number, control.Permit(venue, endpoint, granted, self.world.monotonic_ns() + PERMIT_NS, kind))
            if granted < count:
                self.wants_permit[want] = count - granted
        if self.wants_permit and not self.granting:
            self.granting = True
            self.world.after(PERMIT_PAUSE_NS, self.grant_again)

    def grant_again(self):
        self.granting = False
        if not self.is_dead:
            self.grant()

    # -- the mover's actions -----------------------------------------------------------------------------------------------

    def act(self):
        """Keep what was decided, then say it; what takes over from the dead goes first, as anybody can do it again."""
        while actions := list(self.mover.take()):
            while actions and isinstance(actions[0], moves.TakeOver):
                self.do_takeover(actions.pop(0))
            for action in [action for action in actions if isinstance(action, moves.Promoted)]:
                actions.remove(action)
                self.do_promoted(action)
            self.saved = self.document() if self.world.may_die else None
            if self.dies_unsent and actions:
                self.die()
                return
            for action in actions:
                getattr(self, "do_" + type(action).__name__.lower())(action)
        if not self.ticking and (self.mover.flying or self.mover.queue or self.mover.leaving or self.replan_s):
            self.ticking = True
            self.world.after(SECOND // 4, self.tick)

    def tick(self):
        self.ticking = False
        if not self.is_dead:
            self.mover.tick(self.now_s())
            if self.replan_s is not None and self.now_s() >= self.replan_s and not self.mover.flying:
                self.replan_s = None
                self.plan(improve=False)
            self.act()

    def do_shard(self, action):
        if action.worker in self.mover.up:
            self.tell_shard(action.worker)

    def do_letgo(self, action):
        self.say(action.worker, control.LetGo(action.instrument, action.to_worker, action.floors, action.quiet, action.deadline_s))

    def do_takeover(self, action):
        self.say(action.worker, control.TakeOver(action.instrument, action.from_worker, action.handover))

    def do_ask(self, action):
        if action.worker in self.mover.up:
            self.say(action.worker, control.AskReady(action.instrument))

    def do_rotate(self, action):
        self.world.counts["rotated with a hole"] += 1
        self.world.rotated(action.worker, action.connection)
        self.say(action.worker, control.Rotate(action.connection))

    def do_replace(self, action):
        self.world.counts["replaced"] += 1
        self.world.kill_worker(action.worker)

    def do_promoted(self, action):
        """The standby's streams are the owner's and keep their ids, by which their worker knows them."""
        self.world.counts["promoted"] += 1
        for ours, theirs in action.pairs:
            self.ids[ours], self.ids[theirs] = self.ids[theirs], self.ids[ours]
            self.keys[self.ids[ours]], self.keys[self.ids[theirs]] = ours, theirs

    def do_replan(self, action):
        self.replan_s = self.replan_s or self.now_s() + REPLAN_S

    def do_finished(self, action):
        self.finished.append((action.step, action.ok, action.reason))
        self.world.counts["moves done" if action.ok else "moves given up"] += 1

    # -- what it is asked for ------------------------------------------------------------------------------------------------

    def plan(self, improve=True):
        """Plan what is wanted; its moves are queued."""
        settings = plan.Settings(len(self.world.workers), tuple(sorted(self.drained)), improve=improve)
        for want in self.world.wanted:
            self.keys[self.ids.setdefault(want.key, len(self.ids) + 1)] = want.key
        found = plan.plan(self.world.wanted, self.world.profiles, NoLoad, copy.deepcopy(self.mover.placement), settings)
        if self.mover.placement.connections or self.mover.flying:
            self.mover.overtake()
            self.mover.enqueue(1, found.moves, {want.key: want for want in self.world.wanted})
            self.mover.pump(self.now_s())
        else:
            self.mover.reset(self.world.profiles, found.placement)
            self.saved = self.document()
            for number in self.mover.up:
                self.tell_shard(number)
        self.act()

    def move(self, streams, source, target, fresh=False, urgent=False):
        """Queue one move of streams ([key, connection it leaves, 0: any])."""
        number = self.mover.add(2, moves.MOVE, streams, "asked for", source, target, fresh=fresh, urgent=urgent)
        self.mover.pump(self.now_s())
        self.act()
        return number

    def tell_shard(self, number):
        """What this worker is to hold, as one Assign."""
        world, rows, plans = self.world, {}, []
        for connection, streams in self.mover.shard(number):
            held = []
            for want, role, backed in streams:
                stream = world.details[want.venue, want.wire]
                held.append(control.StreamPlan(self.ids[want.key], want.instrument, want.endpoint, want.wire, want.symbol, stream.channel, stream.depth, stream.snapshot,
                                               stream.first_data_s and world.first_data_s, role, backed))
                rows[want.instrument] = control.InstrumentRow(want.instrument, want.venue, want.symbol, -1, 0)
            plans.append(control.ConnectionPlan(connection.id, connection.venue, connection.endpoint, "wss://simulated", held, "",
                                                world.wire_profiles[connection.venue, connection.endpoint]))
        self.generation += 1
        self.say(number, control.Assign(self.generation, list(rows.values()), plans))


def _granted(windows):
    """Windows as they are granted: attempts so far apart may arrive at once."""
    return [Window(window.n, window.per_s + TRANSIT_S) for window in windows]


class Rollovers:
    """Connections are replaced before their venue cuts them, one of an address at a time, and at once where it gave notice."""

    def __init__(self, supervisor):
        self.supervisor, self.world = supervisor, supervisor.world
        self.last_s = {}             # (venue, endpoint) → when the last one was begun
        self.born = {key: {} for key in self.world.profiles}     # (venue, endpoint) → {connection id: when it was opened}
        for key, lifetime_s in self.world.lifetimes.items():
            if lifetime_s:
                self.look(key, lifetime_s)

    def look(self, key, lifetime_s):
        """Replace what is due at an address; look again when the next one may be."""
        if self.supervisor.is_dead:
            return
        now_s, mover = self.supervisor.now_s(), self.supervisor.mover
        going = {source for step in (*mover.flying.values(), *mover.queue) if step.fresh for _, source, _ in step.streams}
        self.born[key] = {id: opened_s for id, opened_s in self.born[key].items() if id in mover.connections}
        connections = [(id, opened_s, lifetime_s) for id, opened_s in self.born[key].items() if id not in going and mover.connections[id].streams]
        id, when_s = rollover.coming(connections, now_s, self.last_s.setdefault(key, now_s))
        if id is not None and when_s <= now_s:
            self.replace(id, urgent=False)
            when_s = now_s + 1
        self.world.after(int(max(1, min(when_s or now_s + 60, now_s + 3600) - now_s) * SECOND), self.look, key, lifetime_s)

    def heard(self, session):
        """What a worker says of a connection."""
        connection = self.supervisor.mover.connections.get(session.id)
        if connection is not None and session.opened_ns:
            self.born[connection.venue, connection.endpoint][session.id] = (session.opened_ns - self.world.real_ns) / SECOND
        else:
            self.forget(session.id)

    def forget(self, id):
        for born in self.born.values():
            born.pop(id, None)

    def worker_died(self, number):
        for id in [connection.id for connection in self.supervisor.mover.connections.values() if connection.worker == number]:
            self.forget(id)

    def replace(self, id, urgent):
        connection = self.supervisor.mover.connections.get(id)
        if connection is not None and connection.streams:
            self.world.counts["rollovers"] += 1
            self.last_s[connection.venue, connection.endpoint] = self.supervisor.now_s()
            self.supervisor.move([[want.key, id, 0] for want in connection.streams], connection.worker, connection.worker, fresh=True, urgent=urgent)


# -- the reader -----------------------------------------------------------------------------------------------------------

class Reader:
    """A strategy that knows what was said, and holds every record against it."""
    def __init__(self, world):
        self.world = world
        self.feed = feedhandler.attach("simulated", reader_name="simulated", directory=world.directory)
        self.last = {}               # (instrument, channel) → number
        self.owner = {}              # instrument → ring
        self.gapped = set()          # (instrument, channel) told to have a gap that has not ended
        self.missed = collections.defaultdict(set)   # (instrument, channel) → numbers that were passed over
        self.read_ns = 0
        self.records = collections.Counter()
        self.failures = []
        self.lost = 0

    def read(self):
        take = {"trade": self.trade, "mark": self.mark, "level": self.level, "status": self.status, "touch": self.owned, "index": self.owned}
        for record in self.feed.records(timeout=0):
            kind = record.kind
            self.records[kind] += 1
            step = take.get(kind)
            if step is not None:
                step(record)
        if self.feed.lost:
            self.fail(f"the reader was lapped by {self.feed.lost} records")
        for (instrument, channel), number in self.last.items():
            self.world.by_channel[instrument, channel].read_to(number)
        self.read_ns = self.world.now

    def fail(self, text):
        self.failures.append(f"{self.world.now / SECOND:.3f} s: {text}")

    def owned(self, record):
        """From the ring that owns the instrument, and from no other."""
        owner = self.owner.setdefault(record.instrument, record.ring)
        if owner != record.ring:
            self.fail(f"{record.kind} of instrument {record.instrument} in ring {record.ring}, its owner is {owner}")

    def trade(self, record):
        self.owned(record)
        self.numbered(record.instrument, "trade", record.trade_id)

    def mark(self, record):
        self.owned(record)
        self.numbered(record.instrument, "mark", record.words[0])

    def numbered(self, instrument, channel, number):
        """The next of its tape, or what lies between was announced as lost and there is a reason."""
        key = instrument, channel
        last = self.last.get(key)
        if last is None:
            self.missed[key].update(range(FIRST, number))
        if last is not None and number <= last and channel == "trade" and number in self.missed[key]:
            self.missed[key].discard(number)     # given up, and found on another line: trades are never thrown away
            self.records["late"] += 1
            return
        if last is not None and number <= last:
            self.fail(f"{channel} {number} of instrument {instrument} again, or late: {last} was before")
            return
        if last is not None and number > last + 1:
            self.missing(key, last + 1, number)
        self.last[key] = number
        self.gapped.discard(key)

    def missing(self, key, first, end):
        self.lost += end - first
        self.missed[key].update(range(first, end))
        tape = self.world.by_channel[key]
        bare = [number for number in range(first, end) if not self.world.is_excused(key[0], tape.when(number))]
        if bare:
            self.fail(f"{key[1]} {bare} of instrument {key[0]} never came, said at {tape.when(bare[0]) / SECOND:.3f} s")
        elif key[1] != "mark" and key not in self.gapped:
            self.fail(f"{key[1]} {first}..{end - 1} of instrument {key[0]} are missing and no GAP said so")

    def level(self, record):
        """A change is the next one; a snapshot may skip what a GAP announced."""
        self.owned(record)
        if record.flags & SNAPSHOT:
            if record.flags & RESET:
                number, last = record.sequence, self.last.get((record.instrument, "book"))
                if last is not None and number > last:
                    self.missing((record.instrument, "book"), last + 1, number + 1)
                elif last is not None and number < last:
                    self.fail(f"the book of instrument {record.instrument} went back from {last} to {number}")
                self.last[record.instrument, "book"] = number
                self.gapped.discard((record.instrument, "book"))
                self.records["resets"] += 1
            return
        if record.words[1] != record.sequence:
            self.fail(f"change {record.sequence} of instrument {record.instrument} has the size {record.words[1]}")
        self.numbered(record.instrument, "book", record.sequence)

    def status(self, record):
        code, instrument = record.code, record.instrument
        self.records[code] += 1
        if code == "MOVED_IN":
            if self.owner.get(instrument, record.b) != record.b:
                self.fail(f"instrument {instrument} came from {record.b}, but {self.owner[instrument]} owned it")
            self.owner[instrument] = record.ring
        elif instrument is not None and code in ("GAP", "STALE", "REJECTED"):
            self.owned(record)
            channel = CHANNELS[record.detail]
            if not self.world.was_excused(instrument, self.read_ns):
                self.fail(f"{code} of instrument {instrument} {channel} without a fault: {record.as_dict()}")
            if code == "GAP":
                self.gapped.add((instrument, channel))

    def check_complete(self):
        """Everything that was said is here, to the last, and the books are the venues'."""
        for market in self.world.by_id.values():
            market.schedule(0)
        self.world.run(MINUTE)
        self.read()
        for (instrument, channel), tape in self.world.by_channel.items():
            if tape.number != self.last.get((instrument, channel)):
                self.fail(f"{channel} of instrument {instrument} ends at {self.last.get((instrument, channel))}, said was {tape.number}")
            if channel == "book":
                book = self.feed.book(instrument)
                bids = {int(price * 10): int(size) for price, size in book.bids}
                if bids != dict(levels(tape.number)) or book.stale:
                    self.fail(f"the book of instrument {instrument} is {bids} (stale: {book.stale}), the venue's is {dict(levels(tape.number))}")


# -- all of it ------------------------------------------------------------------------------------------------------------

@dataclasses.dataclass
class Settings:
    """What a world is made of. profile: what is put over every venue's capacity profile, table by table."""
    seed: int = 0
    workers: int = 3
    listing: tuple = ((Deribit, 6), (BinanceUsdm, 6))     # (venue, instruments)
    lines: int = 1                       # of every third instrument
    standbys: bool = False               # of every second one
    profile: dict = dataclasses.field(default_factory=dict)
    limits: dict = dataclasses.field(default_factory=dict)    # overrides as an operator writes them
    idle_ns: int = 10 * MINUTE           # between two events of a stream
    busy_ns: int = 200 * MS              # … while somebody subscribes or leaves, and so much longer
    busy_for_ns: int = 6 * SECOND
    look_ns: int = 100 * MS
    report_ns: int = 50 * MS
    jitter_ns: int = 5 * MS
    rest_fails: float = 0.0
    first_data_s: float = 60.0
    may_die: bool = True                 # the supervisor's document is kept


class World(Time):
    """Everything at once. `with World(settings) as world`; files are gone afterwards."""

    def __init__(self, settings):
        super().__init__(settings.seed)
        self.settings = settings
        self.look_ns, self.jitter_ns, self.rest_fails = settings.look_ns, settings.jitter_ns, settings.rest_fails
        self.first_data_s, self.may_die = settings.first_data_s, settings.may_die
        self.errors, self.counts = [], collections.Counter()
        self.usage = limits.Usage()
        self.exchanges, self.profiles, self.wire_profiles, self.lifetimes = {}, {}, {}, {}
        self.budgets = {}                                     # (venue, endpoint, kind) → Budget; they outlive supervisors
        self.by_id, self.by_channel, self.details, self.wanted = {}, {}, {}, []
        self.excuses = collections.defaultdict(list)          # instrument → [[begin, end or None]]
        self.bad = collections.defaultdict(list)              # instrument → sockets that are lost, whether their worker knows or not
        self.calm_ns = 0                                      # since then there is a supervisor, and REST
        self.unread, self.connection_ns = 0, 0                # connection_ns: of all connections that have ended, at the venues
        self.workers = [None] * settings.workers

    def __enter__(self):
        self.files = contextlib.ExitStack()
        self.directory = self.files.enter_context(tempfile.TemporaryDirectory(prefix=f"feedhandler-test-{os.getpid()}-world-", dir="/dev/shm"))
        dir_fd = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        tables.create(dir_fd, ROWS, 1)
        self.table = tables.Instruments(dir_fd)
        os.close(dir_fd)
        for dialect, count in self.settings.listing:
            self.list(dialect, count)
        for number in range(len(self.workers)):
            self.begin_worker(number)
        for key, profile in self.profiles.items():
            self.budgets[*key, "connect"] = Budget(_granted(profile.attempts))
            self.budgets[*key, "operation"] = Budget(_granted(profile.operations), Credits(*profile.credits) if profile.credits else None)
        self.reader = Reader(self)
        self.supervisor = Supervisor(self)
        self.supervisor.begin()
        return self

    def __exit__(self, *_):
        self.reader.feed.close()
        for worker in self.workers:
            if not worker.is_dead:
                worker.publisher.close()
        self.table.close()
        self.files.close()

    def list(self, dialect, count):
        """A venue with so many instruments, all of whose channels are wanted."""
        venue = venues.load(dialect.name, ROWS)
        for endpoint in dialect.channels:
            profile = merge(venue.profiles[endpoint], self.settings.limits)
            profile.update({table: {**(profile.get(table) or {}), **rows} for table, rows in self.settings.profile.items()})
            self.profiles[dialect.name, endpoint], self.wire_profiles[dialect.name, endpoint] = Profile.read(profile), profile
            self.lifetimes[dialect.name, endpoint] = (profile.get("lifetime") or {}).get("max_s")
        exchange = self.exchanges[dialect.name] = Exchange(
            self, dialect, {endpoint: self.wire_profiles[dialect.name, endpoint] for endpoint in dialect.channels}, self.usage,
            self.settings.idle_ns, self.settings.busy_ns, self.settings.busy_for_ns)
        for number in range(count):
            self.list_one(exchange, venue, dialect.symbol(number), len(self.by_id))

    def list_one(self, exchange, venue, symbol, id):
        dialect = exchange.dialect
        self.table.put(id, "perpetual", -1, 0, 0, 1, 1, 1, 0, False, 0, tables.UNDEFINED, dialect.name, symbol, f"{dialect.name} {symbol}")
        market = self.by_id[id] = Market(exchange, id, symbol)
        found = [venue.stream(symbol, Channel.parse(channel)) for channels in dialect.channels.values() for channel in channels]
        exchange.list(market, found)
        numbers = [0] + [1] * (self.settings.lines == 2 and id % 3 == 0) + [STANDBY] * (self.settings.standbys and id % 2 == 0)
        for stream in found:
            self.details[dialect.name, stream.wire] = stream
            channel = {"ticker": "mark"}.get(stream.channel, stream.channel)
            self.by_channel[id, channel] = market.tapes[stream.wire]
            self.wanted += [plan.Wanted(dialect.name, stream.endpoint, stream.wire, id, symbol, line, stream.channel, "perpetual") for line in numbers]

    # -- life and death -------------------------------------------------------------------------------------------------

    def begin_worker(self, number):
        self.workers[number] = SimulatedWorker(self, number)
        return self.workers[number]

    def kill_worker(self, number):
        """kill -9. What a standby that is ready takes over is not excused, nor what is given back to its old owner."""
        worker = self.workers[number]
        if worker.is_dead:
            return
        for instrument in {stream.plan.instrument for link in worker.links.values() for stream in link.connection.wanted()}:
            if self.loses_with(worker, instrument):
                self.excuse(instrument)
            elif self.publishes(worker, instrument):
                self.counts["instruments whose owner died and that lost nothing"] += 1
        self.counts["workers killed"] += 1
        worker.kill()
        self.after(NOTICED_NS, self.supervisor.worker_died, number)

    def loses_with(self, worker, instrument):
        """Whether this worker's death costs records of an instrument: it publishes it, and nobody is ready to go on. (The new side
        of a move that has not been let go of has no book of its own where books start from REST.)"""
        mover, number = self.supervisor.mover, worker.options.worker
        if self.is_orphan(instrument):
            return True              # its owner died a moment ago, and this may be who should go on
        if not self.publishes(worker, instrument) and mover.placement.workers.get(instrument) != number:
            return False
        standby, step = mover.placement.standbys.get(instrument), mover.busy.get(instrument)
        if step is not None and step.phase in (moves.LETTING, moves.TAKING, moves.RETURNING):
            other = step.target if number == step.source else step.source
            seedless = step.phase == moves.LETTING and number == step.source and hasattr(self.by_id[instrument].dialect, "body")
            return self.supervisor.is_dead or self.workers[other].is_dead or seedless   # else that one goes on behind what this one published
        return self.supervisor.is_dead or standby is None or instrument not in mover.ready or not self.is_followed(self.workers[standby], instrument)

    def is_followed(self, worker, instrument):
        """Whether a worker holds every stream of an instrument in private, on connections that are well whether it knows or not."""
        held = self.held(worker, instrument)
        return not worker.is_dead and bool(held) and all(
            stream.state == "HELD" and link.session is not None and link.session.is_well(stream.plan.wire) for link, stream in held)

    def is_orphan(self, instrument):
        owner = self.supervisor.mover.placement.workers.get(instrument)
        return owner is not None and self.workers[owner].is_dead

    def kill_supervisor(self, unsent=False):
        """It dies now, or (unsent) when it has decided and kept something, and not said it."""
        if unsent:
            self.supervisor.dies_unsent = True
        else:
            self.supervisor.die()

    def begin_supervisor(self):
        """A new one adopts what lives, with what the old one kept."""
        if not self.supervisor.is_dead:
            self.supervisor.die()
        self.supervisor = Supervisor(self, self.supervisor.saved)
        self.supervisor.begin()

    # -- what a fault excuses ---------------------------------------------------------------------------------------------

    def publishes(self, worker, instrument):
        return not worker.is_dead and any(not stream.private for stream in self.streams(worker, instrument))

    def held(self, worker, instrument):
        return [(link, stream) for link in worker.links.values() for stream in link.connection.wanted() if stream.plan.instrument == instrument]

    def streams(self, worker, instrument):
        return [stream for _, stream in self.held(worker, instrument)]

    def lost(self, socket):
        """This connection will end, or has: what only it carried may have a hole."""
        for stream in socket.link.connection.wanted():
            instrument = stream.plan.instrument
            private = (stream.private and instrument not in self.supervisor.mover.busy and not self.supervisor.is_dead
                       and not self.is_orphan(instrument))
            if not private and not self.carried_beside(socket, stream.plan):
                self.bad[instrument].append(socket)
                self.excuse(instrument)

    def carried_beside(self, socket, plan_):
        """Whether another connection of the worker has met the stream, and is well."""
        worker = socket.worker
        return not worker.is_dead and any(
            link is not socket.link and link.session is not None and link.session.is_well(plan_.wire) and worker.publisher.line(plan_.instrument, plan_.channel, link.index) == "met"
            for link in worker.links.values() if any(stream.plan.wire == plan_.wire for stream in link.connection.wanted()))

    def rotated(self, number, connection):
        link = self.workers[number].links.get(connection)
        if link is not None and link.session is not None:
            self.lost(link.session)

    def excuse(self, instrument):
        """From a second ago until all its streams are well again."""
        if not any(end is None for _, end in self.excuses[instrument]):
            self.excuses[instrument].append([self.now - SECOND, None])
            self.after(SECOND, self.recovered, instrument)

    def recovered(self, instrument):
        self.bad[instrument] = [socket for socket in self.bad[instrument] if socket.is_here()]
        owner = next((worker for worker in self.workers if self.publishes(worker, instrument)), None)
        if owner is not None and not self.bad[instrument] and all(
                stream.state in DELIVERS and not stream.private and link.session is not None and link.session.is_well(stream.plan.wire)
                for link, stream in self.held(owner, instrument)):       # what a standby took over may be on a connection that died before
            for excuse in self.excuses[instrument]:
                excuse[1] = excuse[1] or self.now + SECOND
        else:
            self.after(min(MINUTE, max(SECOND, (self.now - self.excuses[instrument][-1][0]) // 10)), self.recovered, instrument)

    def is_excused(self, instrument, at):
        return any(begin <= at and (end is None or at <= end) for begin, end in self.excuses[instrument])

    def was_excused(self, instrument, since):
        """At any moment between `since` and now."""
        return any(end is None or end >= since for _, end in self.excuses[instrument])

    # -- checks ---------------------------------------------------------------------------------------------------------------

    def note_turn(self):
        """A worker wrote a few records; the reader is never so late that it is lapped."""
        self.unread += 1
        if self.unread > UNREAD_MAX:
            self.read()

    def read(self):
        self.unread = 0
        self.reader.read()

    def failures(self):
        """All that is wrong so far."""
        self.read()
        broken = [f"{name}: {meter.used_max} of {meter.limit}" for name, meter in self.usage.meters.items() if meter.violations]
        owners = collections.Counter(instrument for worker in self.workers for instrument in self.by_id if self.publishes(worker, instrument))
        return (self.reader.failures + [repr(error) for error in self.errors] + broken
                + [f"instrument {instrument} has {count} owners" for instrument, count in owners.items() if count > 1])

    def unwell(self):
        """Streams of the placement that are not LIVE (HELD, of a standby), as sentences."""
        found = []
        for want in self.wanted:
            connection = self.supervisor.mover.connections.get(self.supervisor.mover.home.get(want.key))
            if connection is None:
                found.append(f"{want.key} is placed nowhere")
                continue
            worker = self.workers[connection.worker]
            link = None if worker.is_dead else worker.links.get(connection.id)
            stream = None if link is None else link.connection.streams.get(self.supervisor.ids.get(want.key))
            if stream is None or stream.state != ("HELD" if want.line == STANDBY else "LIVE"):
                found.append(f"{want.key} on connection {connection.id} of worker {connection.worker} is "
                             + ("not there" if stream is None else f"{stream.state} ({stream.reason})"))
        return found

    def unnamed(self, states, for_ns):
        """Streams that have been on their way in one of these states for longer, as sentences. Time without a supervisor, or
        without REST, does not count."""
        now = self.monotonic_ns()
        if self.supervisor.is_dead or self.rest_fails:
            self.calm_ns = now
        return [f"{stream.plan.wire} on connection {link.plan.id} of worker {worker.options.worker} is {stream.state} for {(now - stream.since_ns) / SECOND:.0f} s"
                for worker in self.workers if not worker.is_dead for link in worker.links.values() if link.connection.state == "UP"
                for stream in link.connection.wanted()
                if stream.state in states and now - max(stream.since_ns, self.calm_ns) > for_ns and (stream.state != "ACKED" or stream.plan.first_data_s)]

    def heal(self):
        """Venues serve everybody again; those that refused or forgot streams begin with new connections, as what they refused is
        asked for again after a reconnect."""
        self.rest_fails = self.settings.rest_fails
        for exchange in self.exchanges.values():
            for socket in list(exchange.sockets) if exchange.deaf or exchange.refused else ():
                self.lost(socket)
                socket.hang_up(1001, "maintenance is over")
            exchange.deaf.clear()
            exchange.refused.clear()
            for address in exchange.addresses.values():
                address.down_until = 0

    def is_stalled(self):
        """Whether a worker believes in a connection that will never say anything again."""
        return any(link.session is not None and link.session.is_here() and (link.session.is_stalled or link.session not in link.session.exchange.sockets)
                   for worker in self.workers if not worker.is_dead for link in worker.links.values())

    def is_well(self):
        return not self.is_stalled() and not self.supervisor.mover.flying and not self.supervisor.mover.queue and not self.unwell()

    def connection_hours(self):
        return (self.connection_ns + sum(self.now - opened_ns for exchange in self.exchanges.values() for opened_ns in exchange.sockets.values())) / HOUR

    def highest_use(self):
        return {name: meter.used_max / meter.limit for name, meter in self.usage.meters.items() if meter.limit < 10**9}
