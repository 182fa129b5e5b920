"""How much one connection of a venue carries, found out by loading it: a worker of our own in this process, one connection, one
step of streams after the other (capacity/ramp.py judges them).

The worker is the product's own, with its session, books and ring, in a directory of its own that is removed at the end; this
module is its supervisor. The address's budgets are those of every instance here: one connection attempt and the REST weight
are taken from the ledger. One attempt is all: a connection that the venue closes is not opened again.
"""
import asyncio
import contextlib
import dataclasses
import mmap
import os
import shutil
import signal
import statistics
import tempfile
import time
import urllib.parse

import uvloop

from feedhandler import config, control
from feedhandler.capacity import ramp
from feedhandler.capacity.limits import Fill, NoLoad, Rules, item_of
from feedhandler.capacity.plan import Wanted
from feedhandler.counters import Counters
from feedhandler.supervisor import instruments, rest, tables
from feedhandler.supervisor.ledger import Busy, Ledger, default_path
from feedhandler.supervisor.shard import VenueHome
from feedhandler.venue import Channel, VenueError
from feedhandler.worker.worker import Worker, WorkerOptions

CONNECTION = 1              # id of the one there is
SLOT_COUNT = 1 << 16        # of the ring: 4 MiB
RING_HEAD_WORDS, SLOT_WORDS = 512, 8
KINDS = frozenset((1, 2, 4, 5, 6, 7, 8, 9, 10, 11, 12))   # fh_kind of what a venue sends with its own time
NO_LAG = 2 | 4 | 128        # fh_flag SNAPSHOT, RESET, TS_SUSPECT: their time is no lag
LOOK_S = 0.02               # between two looks at ring and socket
SAMPLES_LOOK, SAMPLES_STEP = 64, 100_000   # lags taken at most
SETTLE_S = 20.0             # streams of a step may take so long to come up; then it is measured all the same
PERMIT_WAIT_S = 30.0
PERMIT_PAUSE_S = 0.05
LIST_TRIES = 3
PROBLEM_MAX = 20            # sentences of the document
STOP_S = 1.0
WAITING = frozenset(("PENDING", "SUBSCRIBING"))   # a book that syncs has its messages already
LOST = "connection lost: "


class ProbeError(Exception):
    """It could not begin; the text says why and what to do."""


@dataclasses.dataclass(frozen=True)
class Options:
    """channels are words of config; endpoint "": the one with most of the streams."""
    venue: str
    channels: tuple
    steps: int = 8
    step_seconds: float = 10.0
    symbols_max: int = 100
    endpoint: str = ""


def is_real(home):
    """Whether any address of the venue is beyond this machine."""
    urls = [*home.urls.values()] + ([home.rest_url] if home.rest_url else [])
    return not all(config.is_loopback(urllib.parse.urlsplit(url).hostname or "") for url in urls)


def home_of(settings, folder, venue):
    """The venue as a configuration has it. folder: of the configuration."""
    return VenueHome(venue, 0, settings.venues.get(venue), folder, settings)


def run(settings, folder, options, begun, ended):
    """The document of a whole probe. begun(number, of, streams, due_per_s) and ended(step) are told of every step. Ctrl-C ends it early:
    the document then has `interrupted`. ProbeError: nothing was measured."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(Probe(settings, folder, options, begun, ended).run())


class Probe:
    """One run. To its worker it is the peer on a control socket."""

    def __init__(self, settings, folder, options, begun, ended):
        self.settings, self.options, self.begun, self.ended = settings, options, begun, ended
        self.home = home_of(settings, folder, options.venue)
        self.real = is_real(self.home)
        self.steps, self.problems = [], []
        self.streams = []            # (StreamPlan, InstrumentRow) in the order they are added
        self.endpoint = options.endpoint
        self.states = {}             # stream id → StreamState
        self.permitted = self.up = False
        self.closed = self.complaint = ""
        self.lags, self.rates = ramp.Lags(), {}      # rates: stream id → (channel, messages a second) of the last step that was fine
        self.position = self.generation = 0
        self.interrupted, self.tasks = False, set()
        self.whole = asyncio.Event()     # the worker has told all there is since it was asked

    async def run(self):
        """See run() of the module."""
        self._listen()
        directory = tempfile.mkdtemp(prefix="feedhandler-probe-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None)
        try:
            async with contextlib.AsyncExitStack() as stack:
                await self._open(stack, directory)
                self._listen()                   # again: the worker took the signals for itself
                await self._ramp()
        except asyncio.CancelledError:
            if not self.interrupted:
                raise
            asyncio.current_task().uncancel()
        finally:
            shutil.rmtree(directory)
        return self.document()

    def _note(self, text):
        """A sentence for the document, once."""
        if text not in self.problems and len(self.problems) < PROBLEM_MAX:
            self.problems.append(text)

    def _listen(self):
        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, self._interrupt, asyncio.current_task())

    def _interrupt(self, task):
        if not self.interrupted:
            self.interrupted = True
            task.cancel()

    # -- begin and end -------------------------------------------------------------------------------------------------

    async def _open(self, stack, directory):
        """Budgets, REST and the worker, each closed by the stack."""
        self.ledger = Ledger(default_path(), self._note)
        self.ledger.open(self.home.rest_key, [self.home.rest_window])
        self.rest = rest.Rest(self.home.name, self.home.rest_url, self.home.ca_file, self.ledger, self.home.rest_key, lambda *_, **__: None)
        stack.push_async_callback(self.rest.close)
        row_max = max(2, self.options.symbols_max)
        dir_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        stack.callback(os.close, dir_fd)
        tables.create(dir_fd, row_max, 1)
        table = tables.Instruments(dir_fd)
        stack.callback(table.close)
        self.master = instruments.Master(table, tables.UNDEFINED)
        instance = self.settings.instance
        self.worker = Worker(WorkerOptions(directory, "probe", 0, None, False, SLOT_COUNT, row_max, self.settings.books.levels,
                                           instance.frame_size_max, instance.strict_utf8))
        living = asyncio.get_running_loop().create_task(self.worker.run())
        stack.push_async_callback(self._stop, living)
        await asyncio.sleep(0)                   # it takes its first steps
        self.worker.peer_came(self)
        with open(os.path.join(directory, "worker-0.ring"), "rb") as file:
            ring = stack.enter_context(contextlib.closing(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)))
        self.ring = stack.enter_context(memoryview(ring).cast("Q"))
        self.counters = Counters(directory, 0)

    async def _stop(self, living):
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        self.worker.stop(STOP_S)
        await living

    # -- what is subscribed --------------------------------------------------------------------------------------------

    async def _choose(self):
        """Instruments, the configuration's first, and their streams of one endpoint, as many as one connection may hold."""
        listed = await self._listed()
        named = [symbol for entry in self.settings.subscribe if entry.venue == self.home.name for symbol in entry.symbols]
        found, said = instruments.resolve(self.home.name, listed, [*named, "*"], self.options.symbols_max)
        for text in said:
            if '"*" takes' not in text:          # that is what symbols_max is for
                self._note(text)
        by_endpoint = {}
        for instrument in found[:self.options.symbols_max]:
            for stream, row in self._of_instrument(instrument):
                by_endpoint.setdefault(stream.endpoint, []).append((stream, row, instrument.kind))
        if self.endpoint and self.endpoint not in by_endpoint:
            raise ProbeError(f"{self.home.name} has none of these channels at endpoint {self.endpoint!r}; there are {', '.join(by_endpoint) or 'none'}")
        if not by_endpoint:
            raise ProbeError("; ".join(self.problems) or f"{self.home.name} lists no instrument that trades; see feedhandler errors")
        self.endpoint = self.endpoint or max(by_endpoint, key=lambda endpoint: len(by_endpoint[endpoint]))
        left_out = [endpoint for endpoint in by_endpoint if endpoint != self.endpoint]
        if left_out:
            self._note(f"one connection has one endpoint: streams of {', '.join(left_out)} are left out; choose it with --endpoint")
        self.streams = self._fitting(by_endpoint[self.endpoint])

    async def _listed(self):
        bodies = []
        for request in self.home.venue.instrument_requests():
            for _ in range(LIST_TRIES):
                reply = await self.rest.get(request, rest.LIST)
                if reply.status == 200:
                    break
            else:
                raise ProbeError(f"{self.home.name}: its instrument list cannot be read: {reply.reason}; look at the address and at feedhandler status")
            bodies.append(reply.body)
        return self.home.venue.instruments(bodies)

    def _of_instrument(self, instrument):
        home = self.home
        for text in self.options.channels:
            try:
                stream = home.venue.stream(instrument.symbol, Channel.parse(text))
                id = self.master.add(home.name, 0, instrument, home.venue.price_digits_min.get(instrument.kind, 0),
                                     home.venue.size_digits_min.get(instrument.kind, 0))
            except (VenueError, instruments.InstrumentError) as error:
                self._note(str(error))
                continue
            yield dataclasses.replace(stream, symbol=stream.symbol or instrument.symbol), self.master.control_row(id)

    def _fitting(self, rows):
        """As many of them as the documented limits of a connection and an address leave, kept to 80 %."""
        profile = self.home.typed[self.endpoint]
        rules = Rules(profile)
        fill = Fill(CONNECTION, 0, (self.home.name, self.endpoint, 0), rules)
        most = min(limit for limit in (profile.max_per_conn and max(1, profile.max_per_conn * 80 // 100), profile.streams_usable, len(rows)) if limit)
        kept = []
        for stream, row, kind in rows:
            item = item_of(Wanted(self.home.name, stream.endpoint, stream.wire, row.id, stream.symbol, 0, stream.channel, kind), rules, NoLoad)
            if fill.weight + item.weight <= most and profile.delivered(stream.wire) and item.key not in fill.items and fill.takes(item):
                fill.add(item)
                kept.append((control.StreamPlan(len(kept) + 1, row.id, stream.endpoint, stream.wire, stream.symbol, stream.channel, stream.depth,
                                                stream.snapshot, self.home.deadline(stream)), row))
        return kept

    # -- the worker's peer -----------------------------------------------------------------------------------------------

    def say(self, message):
        """What the worker has to say."""
        handler = getattr(self, "_on_" + type(message).__name__.lower(), None)
        if handler is not None:
            handler(message)

    def unsent(self):
        return 0

    def _on_states(self, message):
        for state in message.streams:
            self.states[state.id] = state
            if state.reason.startswith(LOST):
                self.closed = self.closed or state.reason.removeprefix(LOST)
        self.up = self.up or any(session.state == "UP" for session in message.sessions)
        if message.full:
            self.whole.set()

    def _on_wantpermit(self, message):
        """The one attempt was taken from the budget before. A second one is never granted."""
        if not self.permitted:
            self.permitted = True
            asyncio.get_running_loop().call_soon(self.worker.message, self, control.Permit(message.venue, message.endpoint, 1,
                                                                                           time.monotonic_ns() + int(PERMIT_WAIT_S * 1e9)))

    def _on_punished(self, message):
        if message.retry_s > 0:
            self._ban(message)
        if not message.code or message.code not in (1008, 4005):      # a close speaks for itself
            self.complaint = self.complaint or f"{message.code or ''} {message.reason}".strip()

    def _ban(self, message):
        try:
            self.ledger.ban(self.home.connect_key(self.endpoint), message.retry_s, f"{message.venue}/{message.endpoint}: {message.code} {message.reason}")
        except Busy as error:
            self._note(f"other instances were not told of the ban: {error}")

    def _on_wantsnapshot(self, message):
        task = asyncio.get_running_loop().create_task(self._snapshot(message.stream))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _snapshot(self, id):
        plan = self.streams[id - 1][0]
        reply = await self.rest.get(self.home.venue.snapshot_request(plan.symbol, plan.depth))
        if reply.status != 200:
            self._note(f"a book's snapshot could not be read: {reply.reason}")
        if self.rest.punished:
            self.complaint = self.complaint or reply.reason
        self.worker.message(self, control.Snapshot(id, reply.status, reply.body, reply.reason, reply.retry_s))

    # -- steps -----------------------------------------------------------------------------------------------------------

    async def _ramp(self):
        await self._choose()
        await self._permit()
        sizes = ramp.sizes(len(self.streams), self.options.steps)
        for number, count in enumerate(sizes, 1):
            step = ramp.Step(count, 0.0, ramp.due([(plan.id, plan.channel) for plan, _ in self.streams[:count]], self.rates))
            self.begun(number, len(sizes), count, step.due_per_s)
            self._assign(count)
            await self._measure(step)
            if not self.up:
                raise ProbeError(f"{self.home.urls[self.endpoint]}: no connection: {self.closed or f'not within {SETTLE_S:g} s'}; look at the address, "
                                 "and at feedhandler capacity for bans")
            self.steps.append(step)
            self.ended(step)
            if not ramp.goes_on(step, self.real):
                return

    async def _permit(self):
        """One connection attempt of this address's budget."""
        key = self.home.connect_key(self.endpoint)
        self.ledger.open(key, self.home.attempt_windows(self.endpoint))
        deadline = time.monotonic() + PERMIT_WAIT_S
        while True:
            with contextlib.suppress(Busy):
                if self.ledger.take(key, 1):
                    return
            if time.monotonic() + min(self.ledger.wait_s(key), PERMIT_WAIT_S) >= deadline:
                raise ProbeError(f"{key} has no connection attempt left for {self.ledger.wait_s(key):,.0f} s: others spent it, or it is banned; wait so long")
            await asyncio.sleep(PERMIT_PAUSE_S)

    def _assign(self, count):
        self.generation += 1
        chosen = self.streams[:count]
        plan = control.ConnectionPlan(CONNECTION, self.home.name, self.endpoint, self.home.urls[self.endpoint], [stream for stream, _ in chosen],
                                      self.home.ca_file, self.home.profiles[self.endpoint])
        self.worker.message(self, control.Assign(self.generation, list({row.id: row for _, row in chosen}.values()), [plan]))

    async def _measure(self, step):
        """Let the new streams come up, then watch for the step's seconds. What ends the connection, or is a complaint, ends the step."""
        before = await self._figures()
        until = time.monotonic() + SETTLE_S
        while time.monotonic() < until and not self._over() and self._is_settling(step):
            await asyncio.sleep(LOOK_S)
        if not self.up:
            return
        if not self._over():
            before = await self._figures()
            self.position = self.worker.publisher.position
        queues, begun_s = [], time.monotonic()
        per_look = max(1, min(SAMPLES_LOOK, int(SAMPLES_STEP * LOOK_S / self.options.step_seconds)))
        while not self._over() and (at_s := time.monotonic() - begun_s) < self.options.step_seconds:
            await asyncio.sleep(LOOK_S)
            self._take_lags(at_s, per_look)
            queues.append(self._queue_size())
        step.queue_bytes = int(statistics.median(queues or [0]))
        step.lag_p50_ms, step.lag_p99_ms, step.lag_rise_ms_per_s = self.lags.step()
        self._count(step, before, await self._figures())
        step.closed, step.complaint = self.closed, self.complaint
        if ramp.judge(step).verdict == ramp.FINE:
            self._learn(step, before)

    def _over(self):
        return bool(self.closed or self.complaint)

    def _is_settling(self, step):
        return any(plan.id not in self.states or self.states[plan.id].state in WAITING for plan, _ in self.streams[:step.streams])

    async def _figures(self):
        """(time, frames, bytes, {stream id: (messages, gaps)}) so far."""
        self.whole.clear()
        self.worker.message(self, control.Query())
        await self.whole.wait()
        row = next((row for row in self.counters.sessions() if row["connection"] == CONNECTION), {"frames": 0, "bytes": 0})
        return time.monotonic(), row["frames"], row["bytes"], {id: (state.messages, state.gaps) for id, state in self.states.items()}

    def _count(self, step, before, after):
        step.seconds = max(after[0] - before[0], 1e-9)
        step.messages_per_s, step.bytes_per_s = (max(0, after[at] - before[at]) / step.seconds for at in (1, 2))
        if not self.closed:                     # else every book has one
            step.gaps = sum(gaps - before[3].get(id, (0, 0))[1] for id, (_, gaps) in after[3].items())

    def _learn(self, step, before):
        """Rates of the step's streams, for what a larger step is due."""
        for plan, _ in self.streams[:step.streams]:
            if plan.id in self.states:
                self.rates[plan.id] = plan.channel, (self.states[plan.id].messages - before[3].get(plan.id, (0, 0))[0]) / step.seconds

    def _take_lags(self, at_s, per_look):
        """Event-time lags of records published since the last look, evenly picked."""
        head, ring = self.worker.publisher.position, self.ring
        first = max(self.position, head - SLOT_COUNT // 2)
        self.position = head
        for position in range(first, head, max(1, (head - first) // per_look)):
            at = RING_HEAD_WORDS + (position & (SLOT_COUNT - 1)) * SLOT_WORDS
            commit, recv_ns, event_ns, rest_of_head = ring[at:at + 4]
            kind, flags = rest_of_head >> 32 & 0xff, rest_of_head >> 40 & 0xff
            if commit == position + 1 and event_ns and kind in KINDS and not flags & NO_LAG:
                self.lags.add(kind, at_s, (recv_ns - event_ns) / 1e6)

    def _queue_size(self):
        link = self.worker.links.get(CONNECTION)
        return link.session.queue_size() if link is not None and link.session is not None else 0

    # -- the document ------------------------------------------------------------------------------------------------------

    def document(self):
        found = ramp.summary(self.steps)
        for state in self.states.values():
            if state.state == "REJECTED":
                self._note(f"streams were refused: {state.reason}")
        configured = self.home.typed[self.endpoint].messages_per_s if self.endpoint else 0
        advice = ramp.advised(found, configured)
        line = "" if advice is None else f"[venues.{self.home.name}.limits.\"{self.endpoint}\"]\nmessages_per_s = {advice}"
        return {"venue": self.home.name, "endpoint": self.endpoint, "url": self.home.urls.get(self.endpoint, ""), "real": self.real,
                "channels": list(self.options.channels), "streams_max": len(self.streams), "interrupted": self.interrupted, **found,
                "configured_per_s": configured, "advised_per_s": advice, "config": line,
                "problems": self.problems, "steps": [dataclasses.asdict(step) for step in self.steps]}
