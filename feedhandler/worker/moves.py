"""Streams on their way: lines that linger until their successor has met them, and instruments between two workers.

    connection A ──▶ connection B   an Assign has the stream on B; A keeps it until B alone would lose nothing (Moved)
    worker ──▶ worker               held in private (Ready) → LetGo → LetGone at the old, TakeOver → TakenOver at the new

Both are make before break: what leaves is let go only when its successor delivers. Nothing here runs per frame.
"""
import dataclasses

from feedhandler import control
from feedhandler.worker.handover import scan
from feedhandler.worker.pace import SECOND

LOOK_NS = 20_000_000            # how often lingering lines and private instruments are looked at
QUIET_NS = 3 * SECOND           # acknowledged and without data for so long while nobody else has any: the stream is just quiet
QUIET_SLACK_NS = SECOND // 2    # the other side's quiet began so much earlier than it could tell us
LINGERS = frozenset(("LIVE", "HELD", "STALE", "ACKED"))   # what such a stream delivers, or would, is worth keeping


@dataclasses.dataclass(slots=True)
class Lingering:
    """A stream still served by link while it comes up on another connection."""
    stream: object              # stream.Stream of link
    link: object
    connection: int             # where it goes, and its id there: another one where a standby's stream becomes the owner's
    id: int
    deadline_ns: int
    failed: bool = False        # the deadline passed and the supervisor was told


class Moves:
    """What a Worker asks and is told about streams on their way."""

    def __init__(self, worker):
        self.worker = worker
        self.lingering = {}     # stream id → Lingering
        self.ready = {}         # private instrument → the Ready that was said, or None
        self.letting_go = {}    # instrument → (LetGo, deadline_ns)
        self.handed = {}        # instrument → what we said when we let go of it, until it is gone from here
        self.taking = []        # (TakeOver, when it came): of one turn of the loop
        self.look_ns = 0

    # -- between connections ------------------------------------------------------------------------------------------

    def linger(self, now, wanted):
        """The connections as they should be at this moment: wanted ({id: ConnectionPlan}) and, on the links that
        carry them still, the streams that go to another connection and have not met it."""
        target = self._targets(wanted)
        kept = {}               # connection id → [StreamPlan]
        for id, link in self.worker.links.items():
            here = {stream.wire for stream in wanted[id].streams} if id in wanted else ()
            for stream in link.connection.wanted():
                to = target.get(stream.id) or target.get((link.plan.venue, stream.plan.endpoint, stream.plan.wire))
                known = self.lingering.get(stream.id)
                if to is None or to[0] == id:
                    if known is not None and known.link is link:
                        del self.lingering[stream.id]
                elif stream.plan.wire in here or not self._stays(now, Lingering(stream, link, *to, 0)):
                    self.lingering.pop(stream.id, None)      # here: two lines change places, each goes on as the other
                    self.worker.say(control.Moved(to[1], to[0]))
                else:
                    if known is None or known.link is not link or known.connection != to[0]:
                        self.lingering[stream.id] = Lingering(stream, link, *to, now + int(self.worker.options.linger_s * SECOND))
                    kept.setdefault(id, []).append(stream.plan)
        plans = dict(wanted)
        for id, streams in kept.items():
            plan = plans.get(id) or self.worker.links[id].plan.with_streams([])
            plans[id] = plan.with_streams([*plan.streams, *streams])
        return plans

    def _targets(self, wanted):
        """Where each stream is to be, (connection id, stream id), by its id; one whose id nobody has yet also by what it says on the wire."""
        held = {stream.id for link in self.worker.links.values() for stream in link.connection.wanted()}
        target = {}
        for plan in wanted.values():
            for stream in plan.streams:
                target[stream.id] = plan.id, stream.id
                if stream.id not in held:
                    target[plan.venue, stream.endpoint, stream.wire] = plan.id, stream.id
        return target

    def _stays(self, now, known):
        """Whether the link must keep the stream until it is served where it goes."""
        return known.link.connection.state == "UP" and known.stream.state in LINGERS and not self._met(now, known)

    def _successor(self, known):
        """(Link, Stream) of the stream where it goes, or (None, None)."""
        link = self.worker.links.get(known.connection)
        found = link.connection.streams.get(known.id) if link is not None else None
        return (link, found) if found is not None else (None, None)

    def _met(self, now, known):
        """Whether the other connection alone would lose nothing."""
        link, found = self._successor(known)
        if found is None or link.connection.state != "UP":
            return False
        plan = found.plan
        return self.worker.publisher.line(plan.instrument, plan.channel, link.index) == "met" or self._is_quiet(now, found)

    def _is_quiet(self, now, stream):
        """Acknowledged, and since then nobody had data of it."""
        if stream.state != "ACKED" or now - stream.since_ns < QUIET_NS:
            return False
        last_ns = self.worker.publisher.stream_stats(stream.plan.instrument, stream.plan.channel)[0]
        return last_ns <= stream.since_ns + self.worker.clock_offset_ns()

    def is_told_elsewhere(self, link, stream):
        """Whether another connection tells the stream's state: that which serves it still, or that which it has left for."""
        known = self.lingering.get(stream.id)
        if stream.wanted:
            return known is not None and known.link is not link
        return any(stream.id in other.connection.streams for other in self.worker.links.values() if other is not link)

    def _look_at_lines(self, now):
        left = {}               # link → {stream ids}
        for link in {self.worker.links.get(known.connection) for known in self.lingering.values()} - {None}:
            link.look_at_lines(now)     # what it has met it says, before the other leaves it alone with that
        for id, known in list(self.lingering.items()):
            _, found = self._successor(known)
            if known.link.connection.state != "UP" or self._met(now, known):
                del self.lingering[id]
                left.setdefault(known.link, set()).add(id)
                self.worker.say(control.Moved(known.id, known.connection))
                self.worker.changed(known.id)
            elif not known.failed and (now >= known.deadline_ns or (found is not None and found.state == "REJECTED")):
                known.failed = True
                reason = found.reason if found is not None else ""
                self.worker.say(control.Moved(known.id, known.connection, False, reason or "it did not come up there in time"))
        for link, ids in left.items():
            self._left(link, ids)

    def _left(self, link, ids):
        """Streams that live elsewhere now leave this link; one that is left with nothing is retired."""
        for stream in link.connection.wanted():
            if stream.id in ids:
                self.worker.publisher.drop_line(stream.plan.instrument, stream.plan.channel, link.index)
        rest = [plan for plan in link.plan.streams if plan.id not in ids]
        if not rest and link.leaving:
            self.worker.retire(link)
        else:
            link.replan(link.plan.with_streams(rest))

    # -- between workers: the side that waits ---------------------------------------------------------------------------

    def private(self):
        """{instrument: [(Link, Stream)]} of all that is held in private."""
        found = {}
        for link in self.worker.links.values():
            for stream in link.connection.wanted():
                if stream.private:
                    found.setdefault(stream.plan.instrument, []).append((link, stream))
        return found

    def _look_at_private(self, now):
        found = self.private()
        self.ready = {instrument: self.ready.get(instrument) for instrument in found}
        self.handed = {instrument: handover for instrument, handover in self.handed.items() if instrument in found}
        for instrument, held in found.items():
            if all(stream.state == "HELD" or self._is_quiet(now, stream) for _, stream in held):
                if self.ready[instrument] is None:
                    self._say_ready(instrument, held)
            else:
                self.ready[instrument] = None

    def _say_ready(self, instrument, held):
        facts = self.worker.publisher.ready(instrument)
        floors = {channel: row["floor"] for channel, row in facts["channels"].items()}
        quiet = sorted(stream.plan.channel for _, stream in held if stream.state != "HELD")
        self.ready[instrument] = control.Ready(instrument, floors, quiet, facts["book"])
        self.worker.say(self.ready[instrument])

    def say_again(self):
        """To a supervisor that asks: what is ready, with the floors of now, and which streams did not come up where they go."""
        self.ready = {}
        for known in self.lingering.values():
            known.failed = False

    def take_over(self, message):
        """Done at the end of this turn of the loop, so that a dead worker's ring is read once for all its instruments."""
        self.taking.append((message, self.worker.clock.monotonic_ns()))
        if len(self.taking) == 1:
            self.worker.soon(self._take_all)

    def _take_all(self):
        taking, self.taking = self.taking, []
        dead = {}               # worker → {instrument: hand-over}
        for message, _ in taking:
            if message.handover is None and message.from_worker != self.worker.options.worker:
                dead.setdefault(message.from_worker, []).append(message.instrument)
        publisher = self.worker.publisher
        found = {number: scan(self.worker.options.directory, number, instruments, self.worker.options.worker) for number, instruments in dead.items()}
        for message, came_ns in taking:
            handover = message.handover or found.get(message.from_worker, {}).get(message.instrument)
            if not _says_anything(handover):     # who should have taken over never did: on from where we left it
                handover = self.handed.get(message.instrument, handover)
            self.worker.attempt(self._take, message, came_ns, handover)
        publisher.turn()
        self.worker.notices()

    def _take(self, message, came_ns, handover):
        instrument = message.instrument
        self.letting_go.pop(instrument, None)    # it is to stay here
        held = [(link, stream) for link in self.worker.links.values() for stream in link.connection.wanted()
                if stream.plan.instrument == instrument]
        if not held:
            self.worker.say(control.TakenOver(instrument, False, reason=f"worker {self.worker.options.worker} has no stream of instrument {instrument}"))
            return
        now = self.worker.clock.monotonic_ns()
        blind = [stream.plan.channel for _, stream in held if not stream.has_data and not self._is_quiet(now, stream)]
        state = self.worker.publisher.take_over(held[0][0].venue, instrument, message.from_worker, handover, blind)
        self.ready.pop(instrument, None)
        self.handed.pop(instrument, None)
        for link, stream in held:
            link.tell(link.connection.taken_over, stream, state)
        self.worker.say(control.TakenOver(instrument, True, state, "", self.worker.clock.monotonic_ns() - came_ns))

    # -- between workers: the side that lets go --------------------------------------------------------------------------

    def let_go(self, message):
        self.letting_go[message.instrument] = message, self.worker.clock.monotonic_ns() + int(message.deadline_s * SECOND)
        self._try_let_go(message.instrument, self.worker.clock.monotonic_ns())

    def _try_let_go(self, instrument, now):
        message, deadline_ns = self.letting_go[instrument]
        publisher = self.worker.publisher
        handover, reason = None, ""
        for channel in message.quiet:
            last_ns = publisher.stream_stats(instrument, channel)[0]
            if last_ns and self.worker.clock.time_ns() - last_ns < QUIET_NS - QUIET_SLACK_NS:
                reason = f"the other worker has no data of {channel}, here it is not quiet"
        if not reason:
            handover = publisher.let_go(instrument, message.to_worker, message.floors)
            if handover is None and now >= deadline_ns:
                reason = f"its records did not reach what the other worker holds within {message.deadline_s:g} s"
        if handover is None and not reason:
            return
        del self.letting_go[instrument]
        if handover is not None:
            self.handed[instrument], self.worker.has_private = handover, True
            for link in self.worker.links.values():
                for stream in link.connection.wanted():
                    if stream.plan.instrument == instrument:
                        link.tell(link.connection.let_go, stream)
        self.worker.say(control.LetGone(instrument, handover, handover is not None, reason))

    # -- time ----------------------------------------------------------------------------------------------------------

    def tick(self, now):
        """Every beat."""
        for instrument in list(self.letting_go):
            self.worker.attempt(self._try_let_go, instrument, now)
        if now < self.look_ns:
            return
        self.look_ns = now + LOOK_NS
        if self.lingering:
            self._look_at_lines(now)
        if self.worker.has_private:
            self._look_at_private(now)


def _says_anything(handover):
    """Whether a hand-over tells of any record: one read from the ring of a worker that published none does not."""
    return bool(handover) and ("kinds" not in handover or handover["position"] > 0)
