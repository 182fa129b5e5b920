"""The worker process: one pinned loop, its connections, its ring, and a control socket the supervisor connects to.

It waits for nobody: without a supervisor it goes on as it is, with the permits it has. What the supervisor does not
read is held at OUT_SIZE_MAX bytes, then that supervisor is dropped; states are coalesced, so the next one gets them whole.
"""
import asyncio
import collections
import contextlib
import ctypes
import dataclasses
import gc
import importlib.metadata
import os
import random
import resource
import signal
import sys
import time
import traceback

import uvloop

from feedhandler import control, venues
from feedhandler.venue import CHANNELS
from feedhandler.worker.link import Link
from feedhandler.worker.moves import Moves
from feedhandler.worker.pace import PermitPool
from feedhandler.worker.publisher import Publisher
from feedhandler.worker.session import Figures, Session, tls_context
from feedhandler.worker.stream import DELIVERS
from feedhandler.worker.watch import LOOK_NS, Watch

BEAT_NS = 5_000_000             # heartbeats and due times; readers call a worker silent after 100 ms
REPORT_NS = 20_000_000          # how often changed states go to the supervisor
FIGURES_NS = 1_000_000_000      # how often session rows are written
OUT_SIZE_MAX = 8 << 20
OUT_SIZE_BUSY = 256 << 10       # states wait while this much is unsent
PEER_MAX = 8
FOLLOWED_S = 5.0                # a new supervisor has ended by then what the one before left between two owners
ALONE_S = 10.0                  # 24 connections at Deribit, each with an operation in so long, stay below 80 % of its credits
SESSION_MAX = 511               # rows of the counters' session table; 0 is the worker itself
SNAPSHOT_MALFORMED = "MALFORMED"
NOTICE_FIRST_DATA, NOTICE_GAP, NOTICE_LIVE, NOTICE_AHEAD, NOTICE_EXPONENT, NOTICE_PENDING_FULL = range(1, 7)


@dataclasses.dataclass
class WorkerOptions:
    """All a worker needs to know to begin; what it is to do comes over its socket."""
    directory: str
    name: str
    worker: int
    cpu: int | None = None
    spin: bool = False
    slot_count: int = 1 << 18
    row_max: int = 4096
    level_max: int = 1000
    frame_size_max: int = 16 << 20
    strict_utf8: bool = False
    generation: int = 1
    linger_s: float = 30.0       # a stream that does not come up on its new connection within this time stays where it is

    @property
    def socket_path(self):
        return os.path.join(self.directory, f"worker-{self.worker}.sock")


class Peer(asyncio.Protocol):
    """One control connection."""

    def __init__(self, worker):
        self.worker = worker
        self.decoder = control.Decoder(control.TO_WORKER)

    def connection_made(self, transport):
        self.transport = transport
        self.worker.peer_came(self)

    def data_received(self, data):
        try:
            messages = self.decoder.feed(data)
        except Exception as error:       # whatever it is, it does not speak our protocol
            self.worker.exception(error)
            self.transport.abort()
            return
        for message in messages:
            self.worker.message(self, message)

    def connection_lost(self, error):
        self.worker.peer_left(self)

    def unsent(self):
        return self.transport.get_write_buffer_size()

    def say(self, message):
        if self.transport.is_closing():
            return
        self.transport.write(control.encode(message))
        if self.unsent() > OUT_SIZE_MAX:
            self.worker.figures.error(0, 0, f"a supervisor left {self.unsent()} bytes unread and was dropped")
            self.transport.abort()


class Worker:
    """See the module. run() is the whole life."""

    def __init__(self, options, clock=time):
        self.options, self.clock = options, clock
        dir_fd = os.open(options.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        resume = os.path.exists(os.path.join(options.directory, f"worker-{options.worker}.ring"))
        self.publisher = Publisher(dir_fd, options.worker, options.slot_count, options.row_max, options.level_max,
                                   options.generation, resume)
        self.figures = Figures(self.publisher)
        self.watch = Watch()
        self.venues = {}             # name → Venue
        self.instruments = {}        # id → InstrumentRow
        self.links = {}              # connection id → Link
        self.retiring = []           # Links on their way out
        self.moves = Moves(self)
        self.has_private = False     # whether the last Assign held anything in private
        self.by_key = {}             # (instrument, channel) → Links that may carry it
        self.pools = collections.defaultdict(PermitPool)
        self.waiting = collections.defaultdict(dict)     # (venue, endpoint, kind) → Link → since when, in order
        self.contexts = {}
        self.alone_timer = None
        self.peers = []              # newest last; the newest is the supervisor
        self.reported = {}           # Links whose state is to be reported
        self.last_gaps = {}          # stream id → (when, why) of its last gap, whatever connection it is on by now
        self.asking = []             # peers that asked for everything in this turn of the loop
        self.generation = 0
        self.free_rows = list(range(SESSION_MAX, 0, -1))
        self.beat_due_ns = self.report_due_ns = self.figures_due_ns = self.look_due_ns = 0
        self.stopping_ns = None
        self.done = None

    # -- life --------------------------------------------------------------------------------------------------------

    async def run(self):
        loop = asyncio.get_running_loop()
        self.done = loop.create_future()
        loop.set_exception_handler(lambda loop, context: self.exception(context.get("exception") or
                                                                        RuntimeError(context["message"])))
        loop.add_signal_handler(signal.SIGTERM, self.stop, 1.0)
        loop.add_signal_handler(signal.SIGINT, lambda: None)     # Ctrl-C is for the supervisor
        if os.path.exists(self.options.socket_path):
            os.unlink(self.options.socket_path)                  # of our predecessor; the ring's lock says it is dead
        server = await loop.create_unix_server(lambda: Peer(self), self.options.socket_path)
        os.chmod(self.options.socket_path, 0o600)
        gc.collect()
        gc.freeze()
        self.beat_due_ns = self.clock.monotonic_ns()
        (self.spin if self.options.spin else self.beat_timer)(loop)
        await self.done
        server.close()
        await asyncio.sleep(0.05)        # what was said last leaves
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.options.socket_path)
        self.publisher.close()

    def beat_timer(self, loop):
        self.beat(self.clock.monotonic_ns())
        if not self.done.done():
            loop.call_later(BEAT_NS / 1e9, self.beat_timer, loop)

    def spin(self, loop):
        """The loop never sleeps: the next turn is always due."""
        now = self.clock.monotonic_ns()
        if now >= self.beat_due_ns:
            self.beat(now)
        if not self.done.done():
            loop.call_soon(self.spin, loop)

    def beat(self, now):
        """Heartbeat, then whatever is due."""
        late_ns = max(0, now - self.beat_due_ns)
        self.figures.loop_turn(late_ns)
        self.watch.late(late_ns)
        self.beat_due_ns = now + BEAT_NS
        self.publisher.turn(now)
        try:
            self.notices()
            self.moves.tick(now)
            for link in [link for link in (*self.links.values(), *self.retiring) if link.due_ns <= now]:
                link.tick(now)
            for link in self.links.values():
                if link.look_ns <= now:
                    link.look(now)
            if now >= self.look_due_ns:
                self.look_due_ns = now + LOOK_NS
                if self.watch.look_at_worker(now):
                    self.say(control.States(self.options.worker, [], [], behind=self.watch.behind))
            if now >= self.report_due_ns:
                self.report_due_ns = now + REPORT_NS
                self.report()
            if now >= self.figures_due_ns:
                self.figures_due_ns = now + FIGURES_NS
                self.ask_again(now)
                for link in self.links.values():
                    link.session_state()
        except Exception as error:
            self.exception(error)
        if self.stopping_ns is not None:
            self.stop_when_down(now)

    def stop(self, drain_s):
        if self.stopping_ns is None:
            self.stopping_ns = self.clock.monotonic_ns() + int(drain_s * 1e9)
            for link in self.links.values():
                link.tell(link.connection.stop)

    def stop_when_down(self, now):
        links = [*self.links.values(), *self.retiring]
        if now >= self.stopping_ns or all(link.is_down() for link in links):
            for link in links:
                link.do_abort(None)
            self.say(control.Stopped(self.options.worker))
            if not self.done.done():
                self.done.set_result(None)

    def exception(self, error):
        """Something of ours went wrong: counted among the distinct errors, printed, and everything else goes on."""
        self.figures.error(1011, 0, f"{type(error).__name__}: {error}")
        traceback.print_exception(error, file=sys.stderr)

    # -- the supervisor --------------------------------------------------------------------------------------------

    def peer_came(self, peer):
        self.peers.append(peer)
        if len(self.peers) > PEER_MAX:
            self.peers[0].transport.abort()
        peer.say(control.Hello(self.options.worker, os.getpid(), pid_start(), self.publisher.epoch, self.generation,
                               self.options.name, VERSION))
        for link in self.links.values():
            link.tell(link.connection.supervisor_back)
        self.later(FOLLOWED_S, self.followed)

    def followed(self):
        self.publisher.supervised(bool(self.peers))

    def peer_left(self, peer):
        if peer in self.peers:
            self.peers.remove(peer)
            self.publisher.supervised(bool(self.peers))
            if not self.peers and self.alone_timer is None:
                self.alone_timer = self.later(ALONE_S, self.alone)

    def say(self, message):
        """To the supervisor, if there is one. Nothing waits for it: permits and snapshots are asked for again."""
        if self.peers:
            self.peers[-1].say(message)

    def message(self, peer, message):
        self.attempt(getattr(self, "on_" + type(message).__name__.lower()), peer, message)

    def attempt(self, step, *arguments):
        """A step of the supervisor's wish: if it cannot be done, that is noted, and the others are done."""
        try:
            step(*arguments)
        except Exception as error:
            self.exception(error)

    def on_assign(self, peer, assign):
        for row in assign.instruments:
            self.attempt(self.add_instrument, row)
        wanted = {plan.id: plan for plan in assign.connections}
        for id, link in list(self.links.items()):
            if id in wanted and not _same_place(link.plan, wanted[id]):
                self.retire(link)
        self.has_private = any(stream.role for plan in assign.connections for stream in plan.streams)
        plans = self.moves.linger(self.clock.monotonic_ns(), wanted)
        gaining = [plan for plan in plans.values() if plan.id not in self.links or _gains(self.links[plan.id].plan, plan)]
        staying = [plan for plan in plans.values() if plan not in gaining]
        for plan in gaining + staying:   # make before break: what appears is asked for before what leaves is let go
            self.attempt(self.hold, plan)
            self.publisher.alive(self.clock.monotonic_ns())   # thousands of streams take a while
        for id, link in list(self.links.items()):
            link.leaving = id not in wanted
            if id not in plans:
                self.retire(link)
        ids = {stream.id for plan in assign.connections for stream in plan.streams}
        self.last_gaps = {id: gap for id, gap in self.last_gaps.items() if id in ids}
        self.generation = assign.generation

    def hold(self, plan):
        link = self.links.get(plan.id)
        if link is not None:
            self.index_keys(link, plan)
            link.replan(plan)
            return
        if not self.free_rows:
            raise ValueError(f"connection {plan.id} is one more than the {SESSION_MAX} a worker can hold; plan more workers")
        link = self.links[plan.id] = Link(self, plan, self.free_rows.pop())
        self.index_keys(link, plan)
        link.start()

    def index_keys(self, link, plan):
        for stream in plan.streams:
            self.by_key.setdefault((stream.instrument, stream.channel), {})[link] = None

    def retire(self, link):
        del self.links[link.plan.id]
        self.retiring.append(link)
        link.retire()

    def on_permit(self, peer, permit):
        key = permit.venue, permit.endpoint, permit.kind
        self.pools[key].add(permit.count, permit.valid_until_ns)
        waiting = self.waiting[key] = {link: since for link, since in self.waiting[key].items() if link.connection.wants_permit(permit.kind)}
        late = min(permit.count, len(waiting)) if self.clock.monotonic_ns() >= permit.valid_until_ns else 0
        if late:
            self.say(control.WantPermit(permit.venue, permit.endpoint, late, permit.kind))
        while waiting and self.pools[key].take(self.clock.monotonic_ns()):
            link = next(iter(waiting))
            del waiting[link]
            self.permitted(link, permit.kind)

    def permitted(self, link, kind):
        link.tell(link.connection.operation_permit if kind == "operation" else link.connection.permit)

    def alone(self):
        """Without a supervisor nobody grants operations: each connection takes one now and then, so that a gap is not for ever."""
        self.alone_timer = None
        if self.peers or self.done.done():
            return
        for (_, _, kind), waiting in list(self.waiting.items()):
            for link in list(waiting) if kind == "operation" else ():
                del waiting[link]
                self.permitted(link, kind)
        self.alone_timer = self.later(ALONE_S, self.alone)

    def on_snapshot(self, peer, snapshot):
        for link in self.links.values():
            stream = link.connection.streams.get(snapshot.stream)
            if stream is None or not stream.snapshot_asked:
                continue
            if snapshot.status != 200:
                reason = snapshot.reason or f"HTTP {snapshot.status}"
                link.tell(link.connection.snapshot, stream, False, reason, snapshot.retry_s)
                continue
            state = self.publisher.snapshot(link.venue, stream.plan.instrument, snapshot.body, self.clock.time_ns())
            link.tell(link.connection.snapshot, stream, state != SNAPSHOT_MALFORMED, "the snapshot could not be decoded")
            self.notices()
            if state == "LIVE" and stream.state not in DELIVERS:
                link.tell(link.connection.live, stream)

    def on_letgo(self, peer, message):
        self.moves.let_go(message)

    def on_askready(self, peer, message):
        self.moves.ready.pop(message.instrument, None)

    def on_takeover(self, peer, message):
        self.moves.take_over(message)

    def on_rotate(self, peer, message):
        link = self.links.get(message.connection)
        if link is not None:
            link.tell(link.connection.rotate, message.reason)

    def on_stop(self, peer, stop):
        self.stop(stop.drain_s)

    def on_query(self, peer, query):
        self.asking.append(peer)
        if len(self.asking) == 1:
            self.soon(self.answer)

    def answer(self):
        """Everything, once for all who asked in this turn: thousands of streams take some milliseconds."""
        asking, self.asking = self.asking, []
        links = list(self.links.values())
        states = control.States(self.options.worker, [state for link in links for state in link.stream_states(True)],
                                [link.session_state() for link in links], True, self.watch.behind, [known.id for known in self.moves.lingering.values()])
        for peer in dict.fromkeys(asking):
            peer.say(states)
        self.moves.say_again()

    def report(self):
        """What changed, as one message; held while the supervisor reads slowly. Figures go to the counters anyway."""
        for link in [*self.links.values(), *self.retiring]:
            for name, count in link.counts().items():
                if self.figures.has(name):
                    self.figures.add(name, count)
        for link in [link for link in self.retiring if link.is_down() and not link.connection.streams]:
            self.retiring.remove(link)
            self.forget(link)
        if not self.peers or self.peers[-1].unsent() > OUT_SIZE_BUSY or not self.reported:
            return
        links, self.reported = list(self.reported), {}
        streams = [state for link in links for state in link.stream_states(False)]
        self.say(control.States(self.options.worker, streams, [link.session_state() for link in links], behind=self.watch.behind))

    def forget(self, link):
        self.reported.pop(link, None)
        self.watch.close(link.index)
        for links in self.waiting.values():
            links.pop(link, None)
        for key in [key for key, links in self.by_key.items() if link in links]:
            del self.by_key[key][link]
            if not self.by_key[key]:
                del self.by_key[key]
        self.figures.row_open(link.index, 0, "", "", "")
        self.free_rows.insert(0, link.index)     # the longest unused is used next: readers may still hold its number

    # -- for links -------------------------------------------------------------------------------------------------

    def touched(self, link):
        if not link.retiring:
            self.reported[link] = None

    def changed(self, id):
        """A stream's state is to be reported, by whoever tells it now."""
        for link in self.links.values():
            stream = link.connection.streams.get(id)
            if stream is not None:
                link.connection.changed[stream] = None
                self.touched(link)

    def soon(self, step):
        """At the end of this turn of the loop."""
        asyncio.get_running_loop().call_soon(self.attempt, step)

    def later(self, delay_s, step):
        """The timer that calls it."""
        return asyncio.get_running_loop().call_later(delay_s, step)

    def clock_offset_ns(self):
        """Of CLOCK_REALTIME before CLOCK_MONOTONIC."""
        return self.clock.time_ns() - self.clock.monotonic_ns()

    def random(self):
        """Of one connection: no two wait alike."""
        return random.Random(random.randbytes(8))

    def dial(self, link, url):
        """(Session, task that connects it) of a link that has its permit."""
        session = Session(self.publisher, link.venue, link, link.index, self.options.frame_size_max, self.options.strict_utf8)
        return session, asyncio.get_running_loop().create_task(link.connect(session, url))

    def want_permit(self, link, kind):
        key = link.plan.venue, link.plan.endpoint, kind
        if self.pools[key].take(self.clock.monotonic_ns()):
            self.permitted(link, kind)
        else:
            self.waiting[key][link] = self.clock.monotonic_ns()
            self.say(control.WantPermit(link.plan.venue, link.plan.endpoint, 1, kind))

    def ask_again(self, now):
        """Once a second, until it comes: who was asked for a permit may have died, or it came too late to be used."""
        for (venue, endpoint, kind), waiting in self.waiting.items():
            count = sum(now - since >= FIGURES_NS and link.connection.wants_permit(kind) for link, since in waiting.items())
            if count:
                self.say(control.WantPermit(venue, endpoint, count, kind, True))

    def carried_elsewhere(self, link, instrument, channel):
        """Whether another connection of this worker has the stream's data."""
        return any(stream.state in DELIVERS for other in self.by_key.get((instrument, channel), ()) if other is not link
                   for stream in other.stream_of(instrument, channel))

    def notices(self):
        """What the publisher noticed, to the connections that carry the stream."""
        while self.publisher.notice_count:
            for instrument, channel, code, a, b in self.publisher.notices():
                if code == NOTICE_EXPONENT:
                    self.say(control.ExponentRaised(instrument, a, b))
                else:
                    self.notice(instrument, CHANNELS[channel], code, a, b)

    def notice(self, instrument, channel, code, a, b):
        for link in list(self.by_key.get((instrument, channel), ())):
            for stream in list(link.stream_of(instrument, channel)):
                if stream in link.second_lines:
                    continue
                if code == NOTICE_FIRST_DATA:
                    self.figures.first_data(max(0, self.clock.monotonic_ns() - link.connection.opened_ns))
                    link.tell(link.connection.first_data, stream)
                elif code == NOTICE_GAP:
                    link.tell(link.connection.gap, stream, f"expected {a}, got {b}" if b else "checksum")
                elif code == NOTICE_LIVE:
                    link.tell(link.connection.live, stream)
                elif code == NOTICE_AHEAD:
                    link.tell(link.connection.ahead, stream)
                elif code == NOTICE_PENDING_FULL:
                    link.tell(link.connection.pending_full, stream)

    def venue(self, name):
        if name not in self.venues:
            self.venues[name] = venues.load(name, self.options.row_max)
        return self.venues[name]

    def add_instrument(self, row):
        """Known ones are left alone: their exponents may have been raised since."""
        known = self.instruments.get(row.id)
        if known is None or (known.venue, known.symbol) != (row.venue, row.symbol):
            self.venue(row.venue).add_instrument(row.id, row.symbol, row.price_exponent, row.size_exponent)
            self.instruments[row.id] = row

    def tls(self, ca_file):
        if ca_file not in self.contexts:
            self.contexts[ca_file] = tls_context(ca_file)
        return self.contexts[ca_file]


def _same_place(plan, other):
    return (plan.venue, plan.endpoint, plan.url, plan.ca_file, plan.source) == (other.venue, other.endpoint, other.url, other.ca_file, other.source)


def _gains(plan, other):
    return bool({stream.id for stream in other.streams} - {stream.id for stream in plan.streams})


def pid_start():
    """Start time of this process, in clock ticks since boot: with the pid it names a process for good."""
    with open("/proc/self/stat", "rb") as stat:
        return int(stat.read().rpartition(b")")[2].split()[19])


def _version():
    try:
        return importlib.metadata.version("feedhandler")
    except importlib.metadata.PackageNotFoundError:
        return "0 (run from its source)"


VERSION = _version()                 # found out once, before the fork


def lock_memory():
    """Keep what is touched in memory, where the limits allow it. 7: MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT."""
    if resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] == resource.RLIM_INFINITY:
        ctypes.CDLL(None).mlockall(7)


def run(options):
    """The life of a worker, in this process. Returns when it was told to stop; exit code 0."""
    if options.cpu is not None:
        os.sched_setaffinity(0, {options.cpu})
    lock_memory()
    worker = Worker(options)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(worker.run())
    return 0
