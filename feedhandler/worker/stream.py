"""One WebSocket connection and its streams as a state machine without I/O: events and a clock in, actions out.

Every event method takes `now` (CLOCK_MONOTONIC, ns) first. What is to be done is appended to the action list that
take() empties; next_deadline() says when tick() is due if nothing else happens. The same events at the same times
with the same seed give the same actions.

    IDLE → WAIT_PERMIT → CONNECTING → UP → CLOSING → BACKOFF → WAIT_PERMIT …
    PENDING → SUBSCRIBING → ACKED → SYNCING → LIVE (HELD, of an instrument held in private), and GAP, STALE, REJECTED, DOWN

What is bounded: requests in flight (REQUEST_MAX), messages waiting (what one subscribe() call of a batch gives),
waiting pongs and replies (the newest PONG_MAX, REPLY_MAX), and every wait has a deadline.
"""
import collections
import dataclasses
import heapq

from feedhandler.venue import Stream as VenueStream
from feedhandler.worker.pace import CONTROL, OPERATION, SECOND, TEXT, Backoff, Pacer

CONNECT_DEADLINE_NS = 20 * SECOND   # TLS 10 s + WebSocket handshake 5 s, and the session's own timers come first
CLOSE_DEADLINE_NS = 2 * SECOND
ACK_DEADLINE_NS = 5 * SECOND
SYNC_DEADLINE_NS = 10 * SECOND      # from first data to a whole book, where the snapshot comes in band
SYNC_REST_DEADLINE_NS = 60 * SECOND # from a REST snapshot to the first change that chains to it
HEALTHY_NS = 30 * SECOND            # up this long with live data: the backoff starts over
SILENCE_NS = 60 * SECOND            # no frame at all, where the profile says nothing better
BUSY_FRAMES = 10                    # this many frames in each of the last BUSY_SECONDS seconds, then none for
BUSY_SECONDS = 20                   # BUSY_SILENCE_NS: something is wrong
BUSY_SILENCE_NS = SECOND
BUSY_CLOSE_NS = 10 * SECOND         # such a connection is not waited for any longer, whatever the venue's pings allow
REJECTED_RETRY_NS = 600 * SECOND    # silent or unanswered streams are tried again this much later
RESYNC_FIRST_NS = 200_000_000
RESYNC_MAX_NS = 30 * SECOND
PUNISHED_FOR_NS = 60 * SECOND       # a close so soon after a complaint about limits is its consequence
LIMIT_BLOCK_NS = 10 * SECOND        # operations rest this long after the venue said "too many"
LIFETIME_EARLY = 0.08               # of a lifetime: left alone, a connection rotates at a random age no further from its end,
LIFETIME_LATE = 0.02                # and no nearer; the supervisor has replaced it before (capacity.rollover.MARGIN)
CLOSING_LEAD_S = 10.0               # from a venue's notice to its close, where the profile says nothing
CLOSING_WAIT = 0.5                  # share of it that the supervisor has to open another connection, before this one is closed and reopened,
CLOSING_SPREAD = 0.4                # … within so much more of it, not all connections at once
DELIVERS = ("LIVE", "HELD")
SUBSCRIBE_BATCH = 100
REQUEST_MAX = 64
REPLY_MAX = 16
PUNISHING_CODES = frozenset((403, 418, 429, 1008, 4005, 4008, 4009))
LIMIT_WORDS = ("too many", "too_many", "too frequent", "rate limit", "10028", "60014", "rate-limit")


# -- actions -------------------------------------------------------------------------------------------------

@dataclasses.dataclass(frozen=True, slots=True)
class Connect:
    url: str


@dataclasses.dataclass(frozen=True, slots=True)
class Send:
    """Send a text message."""
    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class SendPing:
    payload: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class SendPong:
    payload: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Close:
    """Close the WebSocket with this code; closed() follows."""
    code: int
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class Abort:
    """Drop the socket now; it did not close when asked."""


@dataclasses.dataclass(frozen=True, slots=True)
class WantPermit:
    """One connection attempt, which permit() answers; or one operation, which operation_permit() does."""
    kind: str = "connect"


@dataclasses.dataclass(frozen=True, slots=True)
class WantSnapshot:
    """A REST snapshot of the stream's book; snapshot() answers."""
    stream: object
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class HoldBack:
    """Hold the book's changes back from now on: the snapshot they chain to is on its way."""
    stream: object


@dataclasses.dataclass(frozen=True, slots=True)
class AddStream:
    """The publisher is to take this stream's data."""
    stream: object


@dataclasses.dataclass(frozen=True, slots=True)
class BackStream:
    """A standby has come or gone: the publisher is to say in the row what it needs, or not."""
    stream: object


@dataclasses.dataclass(frozen=True, slots=True)
class RemoveStream:
    """The venue was told to stop; the publisher may forget the stream."""
    stream: object


@dataclasses.dataclass(frozen=True, slots=True)
class Resubscribed:
    """A fresh subscription was sent: first data is pending again."""
    stream: object


@dataclasses.dataclass(frozen=True, slots=True)
class SessionUp:
    pass


@dataclasses.dataclass(frozen=True, slots=True)
class SessionLost:
    """Publish the gap of these streams' books before anything later of them."""
    streams: tuple
    code: int
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class Status:
    """Publish a STATUS record of the stream's instrument. code: STALE, LIVE, REJECTED; late_ns: STALE for what comes, not for silence."""
    stream: object
    code: str
    late_ns: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Complain:
    """The venue said something is wrong: note it among the distinct errors."""
    code: str
    reason: str


@dataclasses.dataclass(frozen=True, slots=True)
class Announced:
    """The venue will close the connection: the supervisor may open another one before."""
    reason: str
    lead_s: float


@dataclasses.dataclass(frozen=True, slots=True)
class Punish:
    """The venue refused or closed for breaking a limit: the supervisor must know."""
    code: int
    reason: str
    retry_s: float = 0.0


# -- state ---------------------------------------------------------------------------------------------------

class Stream:
    """One subscription on this connection. plan is a control.StreamPlan."""

    def __init__(self, plan, now):
        self.use(plan)
        self.state = "PENDING"
        self.reason = ""
        self.since_ns = now
        self.private = bool(plan.role)       # its instrument is not published here
        self.wanted = True           # False: leaving
        self.dropped = False
        self.stale_told = False      # readers were told that it is STALE, and not since that it is LIVE
        self.duplicate = False       # another stream of the connection has this wire: never sent
        self.heir = None             # the stream that is to be subscribed on this wire once this one is gone
        self.gaps = 0
        self.gap_ns, self.gap_reason = 0, ""
        self.forget()

    def use(self, plan):
        self.plan = plan
        self.id = plan.id
        self.venue_stream = VenueStream(plan.endpoint, plan.wire, plan.symbol, plan.channel, plan.depth, plan.snapshot,
                                        plan.first_data_s)

    def forget(self):
        """What belongs to one life of the connection."""
        self.on_wire = False         # the venue was asked for it, or is about to be: it is in a message that waits
        self.asked = False           # a subscribe was sent, and no unsubscribe since: data is of that subscription
        self.again = False           # to be unsubscribed and subscribed again
        self.acked = False
        self.has_data = False        # since it was (re)subscribed
        self.silent = 0              # how often in a row it was not answered or stayed silent
        self.resyncs = 0             # since it was last LIVE
        self.due_ns = 0              # no operation for it before this
        self.deadline_ns = None      # what it waits for must have happened by then
        self.snapshot_asked = False
        self.snapshot_due_ns = None  # a REST snapshot is to be asked for then
        self.stale_from = ""         # the state it returns to when frames come again, or in time again
        self.late_told = False       # STALE was published because what comes is late


class Request:
    """One subscribe or unsubscribe message."""

    def __init__(self, id, verb, text, streams):
        self.id = id
        self.verb = verb
        self.text = text
        self.streams = list(streams)
        self.deadline_ns = None      # of its answer, once sent


class Connection:
    """See the module. plan is a control.ConnectionPlan, venue the control plane of a Venue, rng a random.Random."""

    def __init__(self, plan, venue, rng, now):
        self.plan = plan
        self.venue = venue
        self.rng = rng
        self.state = "IDLE"
        self.reason = ""
        self.backoff = Backoff(rng)
        self.streams = {}            # key → Stream, wanted or leaving
        self.by_wire = {}            # wire → the Stream that has it
        self.ending = {}             # wire → Stream whose unsubscribe is not answered
        self.actions = []
        self.changed = {}            # streams whose state changed since changes() was last asked, in order
        self.counts = collections.Counter()
        self.request_id = 0
        self.reconnects = 0
        self.close_code = 0
        self.opened_ns = 0
        self.frames = 0              # of the present session, as told
        self.heard_ns = now
        self.due_ns = None           # of the connection's own state
        self.permit_held = False
        self.stopped = False
        self._forget()
        self._apply(now, plan)

    def _forget(self):
        """Everything that belongs to one life of the connection."""
        profile = self.plan.profile
        liveness = profile.get("liveness") or {}
        sub = profile.get("sub") or {}
        self.pacer = Pacer(profile.get("client_msg") or {})
        self.operations = 0                  # permits in hand, where the address shares a budget of them
        self.operation_asked = False
        self.probe = not (profile.get("client_msg") or {}).get("counts_control_frames")
        self.batch_max = min(SUBSCRIBE_BATCH, sub.get("max_args_per_msg") or SUBSCRIBE_BATCH)
        self.acks = sub.get("ack") != "none"
        self.outbox = collections.deque()    # Requests that wait for their turn, all of one verb
        self.requests = {}                   # id → Request sent and not answered, oldest first
        self.to_join, self.to_leave = {}, {} # Stream → None: operations to come, in order
        self.groups = collections.deque()    # parts of refused batches, to find the stream they were refused for
        self.replies = collections.deque(maxlen=REPLY_MAX)
        self.pong = None
        self.heap = []                       # (at, n, stream): deadlines of streams; ones that no longer hold are skipped
        self.heap_n = 0
        self.ping_ns = int((liveness.get("client_ping_s") or 0) * SECOND) if liveness.get("client_ping") else 0
        self.silence_ns = silence_ns(liveness)
        self.ping_due_ns = self.send_due_ns = self.second_ns = self.rotate_ns = self.healthy_ns = None
        self.per_second = collections.deque(maxlen=BUSY_SECONDS)
        self.frames = self.second_frames = 0
        self.stale = self.stale_busy = False # stale_busy: it was busy until then
        self.late, self.late_ns = "", 0      # why what comes is not what the venue sends now
        self.rotating = ""                   # why, once the permit for the next connection was asked for
        self.leaving_planned = False
        self.announced = None                # (why, until when): the venue said that it will close
        self.punished_ns = 0                 # a close before this counts as a punishment: the venue complained

    # -- what the owner asks ----------------------------------------------------------------------------------

    def take(self):
        """The actions since the last call, in order."""
        actions, self.actions = self.actions, []
        return actions

    def changes(self):
        """Streams whose state changed since the last call."""
        changed, self.changed = self.changed, {}
        return list(changed)

    def live_count(self):
        return sum(stream.state in DELIVERS for stream in self.streams.values())

    def wanted(self):
        return [stream for stream in self.streams.values() if stream.wanted]

    def wants_permit(self, kind="connect"):
        if kind == "operation":
            return self.operation_asked
        return self.state == "WAIT_PERMIT" or bool(self.rotating and self.state == "UP")

    def next_deadline(self):
        """When tick() is due, or None. It may be early, never late."""
        due = [self.due_ns]
        if self.state == "UP":
            due += [self._silence_due_ns(), self.ping_due_ns, self.second_ns, self.send_due_ns, self.rotate_ns,
                    self.healthy_ns, self.heap[0][0] if self.heap else None]
            due += [request.deadline_ns for request in _first(self.requests.values())]
        return min((at for at in due if at is not None), default=None)

    # -- events: plan -----------------------------------------------------------------------------------------

    def start(self, now):
        """Connect, if there is anything to carry."""
        self._run(now)

    def replan(self, now, plan):
        """The streams as they should be now; what did not change is not touched."""
        self.plan = plan
        self._apply(now, plan)
        self._run(now)

    def stop(self, now):
        """Close with 1000 and do not come back."""
        self.stopped = True
        if self.state == "UP":
            self._close(now, 1000, "stopped")
        elif self.state == "CONNECTING":
            self._act(Abort())
            self._lost(now, 1000, "stopped", 0.0)
        elif self.state != "CLOSING":
            self._to("CLOSED", "stopped")

    def rotate(self, now, reason):
        """Close and open anew, as soon as a permit for that is there."""
        if self.state == "UP" and not self.rotating:
            self.rotate_ns, self.reason = now, reason
            self._up_due(now)

    def taken_over(self, now, stream, book):
        """The stream's instrument is published here from now on. book: LIVE, GAP or NONE, what became of its book."""
        stream.private = False
        stream.plan.role = ""
        if stream.plan.channel == "book" and book != "LIVE" and stream.has_data:
            self.gap(now, stream, "its book could not be continued where the other worker left it")
        elif stream.state == "HELD":
            self._set(now, stream, "LIVE", "")
        elif stream.state == "STALE":
            stream.stale_from = "LIVE"
            self._act(Status(stream, "STALE", self.late_ns if self.late else 0))

    def let_go(self, now, stream):
        """Another worker publishes the stream's instrument; here it is held in private, ready to be taken back."""
        stream.private = True
        if stream.state == "LIVE":
            self._set(now, stream, "HELD", "another worker publishes it")
        elif stream.state == "STALE":
            stream.stale_from = "HELD"

    def supervisor_back(self, now):
        """A new supervisor knows nothing of what was asked and announced. Permits are asked for every second anyway."""
        if self.announced and self.state == "UP":
            reason, end_ns = self.announced
            self._act(Announced(reason, max(0.0, (end_ns - now) / SECOND)))
        for stream in self.streams.values():
            if stream.snapshot_asked:
                self._act(WantSnapshot(stream, stream.reason))

    def _apply(self, now, plan):
        wanted = {stream_plan.id: stream_plan for stream_plan in plan.streams}
        self._rename({stream_plan.wire: stream_plan for stream_plan in plan.streams if stream_plan.id not in self.streams}, wanted)
        for stream in self.wanted():
            if stream.id not in wanted or wanted[stream.id].wire != stream.plan.wire:
                self._leave(now, stream)
            elif wanted[stream.id] != stream.plan:
                self._use(stream, wanted[stream.id])
        for stream_plan in plan.streams:
            if stream_plan.id not in self.streams:
                self._add(now, stream_plan)

    def _rename(self, fresh, wanted):
        """A stream that is wanted under another id (a standby's that became the owner's) is the same subscription."""
        for stream in self.wanted():
            stream_plan = fresh.get(stream.plan.wire)
            if stream.id not in wanted and stream_plan is not None and not stream.duplicate:
                del self.streams[stream.id]
                self._use(stream, stream_plan)
                self.streams[stream.id] = stream
                self.changed[stream] = None

    def _use(self, stream, stream_plan):
        is_backed = stream.plan.backed
        stream.use(stream_plan)
        if stream_plan.backed != is_backed:
            self._act(BackStream(stream))

    def _add(self, now, stream_plan):
        stream = Stream(stream_plan, now)
        self.streams[stream.id] = stream
        holder = self.by_wire.get(stream_plan.wire)
        if holder is not None and holder.wanted:
            stream.duplicate = True
            self._set(now, stream, "REJECTED", f"{stream_plan.wire} is already stream {holder.id} of this connection")
            return
        self.by_wire[stream_plan.wire] = stream
        self.changed[stream] = None
        ending = self.ending.get(stream_plan.wire)
        if ending is None:
            self._begin(stream)
        else:                            # what still comes of it says nothing of the subscription that follows
            ending.heir, stream.dropped = stream, True

    def _begin(self, stream):
        self._act(AddStream(stream))
        self.to_join[stream] = None

    def _leave(self, now, stream):
        """It leaves the plan: unsubscribed first, then forgotten, under a key of its own as its id may come back."""
        del self.streams[stream.id]
        stream.wanted = False
        stream.deadline_ns = stream.snapshot_due_ns = None
        stream.snapshot_asked = False
        stream.due_ns = 0
        self.to_join.pop(stream, None)
        self._set(now, stream, "DOWN", "left the plan")
        if stream.on_wire and self.state == "UP":
            self.streams[("leaving", id(stream))] = self.ending[stream.plan.wire] = stream
            self.to_leave[stream] = None
        else:
            self._drop(stream)

    def _drop(self, stream):
        self.streams.pop(("leaving", id(stream)), None)
        self.to_leave.pop(stream, None)
        if self.ending.get(stream.plan.wire) is stream:
            del self.ending[stream.plan.wire]
        if self.by_wire.get(stream.plan.wire) is stream:
            del self.by_wire[stream.plan.wire]
        if not stream.duplicate and not stream.dropped:
            stream.dropped = True
            self._act(RemoveStream(stream))
        heir, stream.heir = stream.heir, None
        if heir is not None and heir.wanted:
            heir.dropped = False
            self._begin(heir)

    # -- events: the connection -------------------------------------------------------------------------------

    def permit(self, now):
        """The attempt asked for with WantPermit may be made now."""
        if self.state == "WAIT_PERMIT":
            self._connect(now)
        elif self.rotating and self.state == "UP":
            self.permit_held = self.leaving_planned = True
            self._close(now, 1000, self.rotating)

    def operation_permit(self, now):
        """One subscribe or unsubscribe message may go now."""
        self.operations, self.operation_asked = 1, False
        self._run(now)
        self.operations = 0          # not needed any more: a permit is good for this moment only

    def opened(self, now):
        if self.state != "CONNECTING":
            return
        self._forget()
        self._to("UP", "")
        self.due_ns = None
        self.opened_ns = self.heard_ns = now
        self.healthy_ns = now + HEALTHY_NS
        self.second_ns = now + SECOND
        self.ping_due_ns = now + self.ping_ns if self.ping_ns else None
        lifetime_s = (self.plan.profile.get("lifetime") or {}).get("max_s")
        if lifetime_s:
            self.rotate_ns = now + int(lifetime_s * SECOND * (1 - self.rng.uniform(LIFETIME_LATE, LIFETIME_EARLY)))
        self.replies.extend(self.venue.on_open(self.plan.endpoint))
        for stream in self.wanted():
            if not stream.duplicate:
                self._set(now, stream, "PENDING", "")
                self.to_join[stream] = None
        self._act(SessionUp())
        self._run(now)

    def connect_failed(self, now, code, reason, retry_s=0.0):
        """No connection came about. code: HTTP status of a refusal, 0 if it did not get that far."""
        if self.state == "CONNECTING":
            self._lost(now, code, reason, retry_s)

    def closed(self, now, code, reason, retry_s=0.0):
        """The connection ended, by whoever's wish. code 1006: without a close frame."""
        if self.state in ("CONNECTING", "UP", "CLOSING"):
            self._lost(now, code, reason, retry_s)

    def _connect(self, now):
        self.permit_held = False
        self._to("CONNECTING", "")
        self.due_ns = now + CONNECT_DEADLINE_NS
        self._act(Connect(self.venue.url(self.plan.endpoint, self.plan.url, [])))

    def _close(self, now, code, reason):
        self._to("CLOSING", reason)
        self.due_ns = now + CLOSE_DEADLINE_NS
        self._act(Close(code, reason))

    def _lost(self, now, code, reason, retry_s):
        punished = code in PUNISHING_CODES or now < self.punished_ns
        planned = self.leaving_planned and not punished
        if self.state != "CONNECTING":
            self.reconnects += 1
            self.close_code = code
            self._act(SessionLost(tuple(stream for stream in self.wanted() if stream.has_data), code, reason))
        if punished:
            self._act(Punish(code, reason, retry_s))
        text = f"{code} {reason}".strip()
        self._forget()
        for stream in list(self.streams.values()):
            if not stream.wanted:
                self._drop(stream)
            elif not stream.duplicate:
                stream.forget()
                self._set(now, stream, "DOWN", f"connection lost: {text}")
        self.due_ns = None
        if self.stopped:
            self._to("CLOSED", "stopped")
        elif not self.wanted():
            self._to("IDLE", text)
        else:
            self._to("BACKOFF", text)
            self.due_ns = now if planned else now + self.backoff.delay_ns(punished, retry_s)
            self._run(now)

    def _to(self, state, reason):
        self.state, self.reason = state, reason

    # -- events: frames ---------------------------------------------------------------------------------------

    def ping(self, now, payload):
        """A ping frame came: its payload goes back as soon as the budget allows, the newest first (RFC 6455 5.5.3)."""
        if self.state == "UP":
            self.counts["pings"] += 1
            self.pong = payload
            self._run(now)

    def control(self, now, events):
        """What Venue.control() made of a control frame."""
        if self.state != "UP":
            return
        for event in events:
            getattr(self, "_on_" + type(event).__name__.lower())(now, event)
        self._run(now)

    def _on_reply(self, now, reply):
        self.replies.append(reply.text)

    def _on_alive(self, now, alive):
        """Nothing but life, and every frame is that."""

    def _on_closing(self, now, closing):
        """Maintenance: the supervisor may move the streams to another connection; if it does not, leave and come back."""
        if not self.rotating:
            self.reason = closing.reason
            lead_s = (self.plan.profile.get("lifetime") or {}).get("notice_lead_s") or CLOSING_LEAD_S
            soon = now + int(lead_s * (CLOSING_WAIT + CLOSING_SPREAD * self.rng.random()) * SECOND)
            self.rotate_ns = soon if self.rotate_ns is None else min(soon, self.rotate_ns)
            self.announced = closing.reason, now + int(lead_s * SECOND)
            self._act(Announced(closing.reason, lead_s))

    def _on_complaint(self, now, complaint):
        text = f"{complaint.code} {complaint.reason}".strip()
        self._act(Complain(str(complaint.code), complaint.reason))
        if _is_limit(text):
            self._limited(now, complaint.code, complaint.reason)
        stream = self.by_wire.get(complaint.wire) if complaint.wire else None
        if stream is not None:
            self._reject(now, stream, text)

    def _on_ack(self, now, ack):
        request = self._request_of(ack)
        if request is None:
            if not ack.accepted:
                self._act(Complain(str(ack.request_id), ack.reason))
                if ack.wire in self.by_wire:
                    self._reject(now, self.by_wire[ack.wire], ack.reason)
            return
        streams = [stream for stream in request.streams if not ack.wire or stream.plan.wire == ack.wire]
        request.streams = [stream for stream in request.streams if stream not in streams]
        if not request.streams:
            del self.requests[request.id]
        if request.verb == "unsubscribe":
            for stream in streams:
                self._gone(stream)
        elif not ack.accepted:
            self._refuse(now, streams, ack.reason)
        else:
            self._accept_all(now, streams, ack)

    def _request_of(self, ack):
        """The request an answer belongs to: by its number, else by its wire (oldest first), else the only one there is."""
        if ack.request_id in self.requests:
            return self.requests[ack.request_id]
        if ack.wire:
            return next((request for request in self.requests.values()
                         if any(stream.plan.wire == ack.wire for stream in request.streams)), None)
        return next(iter(self.requests.values())) if ack.request_id == 0 and len(self.requests) == 1 else None

    def _accept_all(self, now, streams, ack):
        for stream in streams:
            wire = stream.plan.wire
            if wire in ack.missing or (ack.wires is not None and wire not in ack.wires):
                self._reject(now, stream, ack.reason or f"the venue left {wire} out of its answer")
            else:
                self._accept(now, stream)

    def _accept(self, now, stream):
        if stream.acked or not stream.wanted:
            return
        stream.acked = True
        self.counts["subscribe_acked"] += 1
        if not stream.has_data:
            self._set(now, stream, "ACKED", "")
            self._wait(stream, now + int(stream.plan.first_data_s * SECOND) if stream.plan.first_data_s else None)

    def _refuse(self, now, streams, reason):
        """One stream: it is rejected. Several: the halves are tried, so that one bad symbol costs only itself."""
        wanted = [stream for stream in streams if stream.wanted]
        for stream in streams:
            if not stream.wanted:
                self._gone(stream)
        if _is_limit(reason):
            self._limited(now, 0, reason)
            for stream in wanted:
                self._join_again(now, stream, LIMIT_BLOCK_NS, reason)
        elif len(wanted) == 1:
            self._reject(now, wanted[0], reason)
        elif wanted:
            half = len(wanted) // 2
            self.groups.extend((wanted[:half], wanted[half:]))
            for stream in wanted:
                self._join_again(now, stream, 0, f"its batch was refused: {reason}")

    def _limited(self, now, code, reason):
        """The venue says it is too much: no operation for a while, and the supervisor learns."""
        self.pacer.block(now + LIMIT_BLOCK_NS)
        self.punished_ns = now + PUNISHED_FOR_NS
        self._act(Punish(int(code) if str(code).isdigit() else 0, reason))

    def _reject(self, now, stream, reason):
        """The venue will not serve it. It is asked for again after the next reconnect."""
        if not stream.wanted:
            self._gone(stream)
            return
        stream.on_wire = stream.again = stream.acked = stream.has_data = False
        stream.snapshot_asked = False
        stream.snapshot_due_ns = stream.deadline_ns = None
        self.to_join.pop(stream, None)
        self.to_leave.pop(stream, None)
        self.counts["subscribe_rejected"] += 1
        self._set(now, stream, "REJECTED", reason)
        self._act(Status(stream, "REJECTED"))

    def _gone(self, stream):
        """An unsubscribe was answered, or will not be."""
        if not stream.wanted and stream not in self.to_leave:
            self._drop(stream)

    def _join_again(self, now, stream, delay_ns, reason):
        stream.on_wire = stream.asked = stream.again = stream.has_data = stream.snapshot_asked = False
        stream.deadline_ns = stream.snapshot_due_ns = None
        stream.due_ns = now + delay_ns
        self.to_join[stream] = None
        self._set(now, stream, "PENDING", reason)

    # -- events: data -----------------------------------------------------------------------------------------

    def first_data(self, now, stream):
        """The first event since the stream was (re)subscribed; it may come before the acknowledgement."""
        if not self._is_served(stream) or stream.has_data:
            return
        stream.has_data = stream.on_wire = True
        stream.again = False         # it may have been about to be asked for again for its silence
        stream.silent = 0
        self.to_leave.pop(stream, None)
        self.to_join.pop(stream, None)
        self._wait(stream, None)
        if stream.plan.channel != "book" or (stream.private and stream.plan.role == "incoming" and stream.plan.snapshot == "rest"):
            self._live(now, stream)  # an incoming book comes with the hand-over
        elif stream.plan.snapshot == "rest":
            self._want_snapshot(now, stream, "first data")
        else:
            self._set(now, stream, "SYNCING", "")
            self._wait(stream, now + SYNC_DEADLINE_NS)

    def live(self, now, stream):
        """The book is in sync."""
        if self._is_served(stream) and not stream.again:
            stream.has_data = stream.on_wire = True
            self._live(now, stream)

    def gap(self, now, stream, reason):
        """The book's chain broke. While one resync is on its way further gaps start no other."""
        stream.gaps += 1
        if self.state == "UP":       # else the lost connection is the reason, and already noted
            stream.gap_ns, stream.gap_reason = now, reason
        if self._is_served(stream) and stream.has_data and not self._is_resyncing(stream):
            self._set(now, stream, "GAP", reason)
            self._resync(now, stream, reason)
            self._run(now)

    def ahead(self, now, stream):
        """The REST snapshot was older than what was held back: another one."""
        if self._is_served(stream) and stream.plan.snapshot == "rest":
            self._snapshot_later(now, stream, "the snapshot was older than the changes held back", 0.0)

    def pending_full(self, now, stream):
        """What was held back overflowed: hold back anew; a snapshot on its way will tell whether it still chains."""
        if not self._is_served(stream):
            return
        if stream.snapshot_asked:
            self._act(HoldBack(stream))
        elif stream.snapshot_due_ns is None:
            self._want_snapshot(now, stream, "the changes held back overflowed")

    def snapshot(self, now, stream, ok, reason="", retry_s=0.0):
        """A REST snapshot came (ok: the publisher has it, its notices say LIVE or AHEAD), or did not."""
        if not stream.snapshot_asked:
            return
        stream.snapshot_asked = False
        if not ok:
            self._snapshot_later(now, stream, reason, retry_s)
        elif stream.state not in DELIVERS:
            self._wait(stream, now + SYNC_REST_DEADLINE_NS)

    def _is_served(self, stream):
        return self.state == "UP" and stream.wanted and stream.asked

    def _is_resyncing(self, stream):
        return stream.again or not stream.on_wire or stream.snapshot_asked or stream.snapshot_due_ns is not None

    def _live(self, now, stream):
        stream.resyncs = 0
        stream.snapshot_due_ns = None
        self.to_join.pop(stream, None)
        self._wait(stream, None)
        self._set(now, stream, "HELD" if stream.private else "LIVE", "")
        if stream.stale_told:        # its connection did not come back to life, another one did
            stream.stale_told = False
            self._act(Status(stream, "LIVE"))
        if self.late:
            self._stale(now, stream, self.late, self.late_ns)

    def _resync(self, now, stream, reason):
        self.counts["resyncs"] += 1
        self._wait(stream, None)
        if stream.plan.snapshot != "rest":
            stream.resyncs += 1
            self._resubscribe(stream, now + (self._resync_delay(stream) if stream.resyncs > 1 else 0))
        elif stream.resyncs:
            self._snapshot_later(now, stream, reason, 0.0)
        else:
            stream.resyncs = 1
            self._want_snapshot(now, stream, reason)

    def _resync_delay(self, stream):
        span = min(RESYNC_MAX_NS, RESYNC_FIRST_NS << min(stream.resyncs, 20))
        return span // 2 + int(self.rng.random() * (span // 2))

    def _resubscribe(self, stream, due_ns):
        """Unsubscribe, then subscribe, both charged to the budget."""
        stream.again = True
        stream.due_ns = due_ns
        self.to_leave[stream] = None

    def _want_snapshot(self, now, stream, reason):
        stream.snapshot_asked = True
        stream.snapshot_due_ns = None
        self._wait(stream, None)
        self._set(now, stream, "GAP" if stream.state == "GAP" else "SYNCING", reason)
        self._act(HoldBack(stream))
        self._act(WantSnapshot(stream, reason))

    def _snapshot_later(self, now, stream, reason, retry_s):
        if stream.snapshot_asked or stream.snapshot_due_ns is not None:
            return
        stream.resyncs += 1
        stream.snapshot_due_ns = now + max(int(retry_s * SECOND), self._resync_delay(stream))
        self._wait(stream, None)
        self._push(stream.snapshot_due_ns, stream)
        self._set(now, stream, "GAP" if stream.state == "GAP" else "SYNCING", reason)

    # -- time -------------------------------------------------------------------------------------------------

    def tick(self, now, frames=0, heard_ns=0):
        """Time passes. frames: how many the session has received since it opened; heard_ns: when the last one came."""
        if frames > self.frames and self.state == "UP":
            self.frames = frames
            self._heard(now, heard_ns or now)
        if self.due_ns is not None and self.due_ns <= now:
            self._state_due(now)
        if self.state == "UP":
            self._up_due(now)
        self._run(now)

    def _state_due(self, now):
        self.due_ns = None
        if self.state == "CONNECTING":
            self._act(Abort())
            self._lost(now, 0, f"no connection within {CONNECT_DEADLINE_NS // SECOND} s", 0.0)
        elif self.state == "CLOSING":
            self._act(Abort())
            self._lost(now, 1006, self.reason, 0.0)

    def _up_due(self, now):
        if self.second_ns <= now:
            self._second(now)
        if self._silence_due_ns() <= now:
            self._silent_connection(now)
        while self.heap and self.heap[0][0] <= now:
            at, _, stream = heapq.heappop(self.heap)
            self._stream_due(now, at, stream)
        for request in [request for request in self.requests.values() if request.deadline_ns <= now]:
            self._unanswered(now, request)
        if self.healthy_ns is not None and self.healthy_ns <= now:
            self._healthy(now)
        if self.rotate_ns is not None and self.rotate_ns <= now:
            self.rotate_ns = None
            self.rotating = self.reason or "planned reconnect before the venue's own cut"
            self._act(WantPermit())

    def _heard(self, now, heard_ns):
        self.heard_ns = max(self.heard_ns, min(now, heard_ns))
        if self.stale:
            self.stale = False
            self._fresh(now)

    def throttled(self, now, reason, late_ns):
        """What comes is late, or a part of what should: the venue holds it back, or we read too slowly. Until recovered()."""
        if self.state != "UP":
            return
        self.late, self.late_ns = reason, max(1, late_ns)
        for stream in self.wanted():
            if stream.state in DELIVERS:
                self._stale(now, stream, reason, self.late_ns)

    def recovered(self, now):
        """What comes is in time again."""
        self.late = ""
        self._fresh(now)

    def _stale(self, now, stream, reason, late_ns=0):
        stream.stale_from = stream.state
        stream.late_told = late_ns > 0
        self.counts["stale_streams"] += 1
        self._set(now, stream, "STALE", reason)
        stream.stale_told = True
        self._act(Status(stream, "STALE", late_ns))

    def _fresh(self, now):
        """Neither silent nor late: what was STALE is what it was before."""
        if self.stale or self.late:
            return
        for stream in self.wanted():
            if stream.state == "STALE":
                stream.late_told = False
                stream.stale_told = False
                self._set(now, stream, stream.stale_from, "")
                self._act(Status(stream, "LIVE"))

    def _second(self, now):
        """Once a second (ten times while stale): how busy the connection is."""
        self.per_second.append(self.frames - self.second_frames)
        self.second_frames = self.frames
        self.second_ns = now + (SECOND // 10 if self.stale else SECOND)

    def _is_busy(self):
        return len(self.per_second) == BUSY_SECONDS and min(self.per_second) >= BUSY_FRAMES

    def _silence_due_ns(self):
        """When silence makes the streams STALE, and, being stale, when it ends the connection."""
        if self.stale:
            patience_ns = self.silence_ns * 3 // 2
            return self.heard_ns + (min(patience_ns, BUSY_CLOSE_NS) if self.stale_busy else patience_ns)
        return self.heard_ns + (BUSY_SILENCE_NS if self._is_busy() else self.silence_ns)

    def _silent_connection(self, now):
        silent_s = (now - self.heard_ns) / SECOND
        if self.stale:
            self._close(now, 1001, f"no frame for {silent_s:.0f} s")
            return
        self.stale, self.stale_busy = True, self._is_busy()
        self.second_ns = now + SECOND // 10
        if self.probe:
            self._act(SendPing(b""))
        for stream in self.wanted():
            if stream.state in DELIVERS:
                self._stale(now, stream, f"no frame on the connection for {silent_s:.1f} s")

    def _stream_due(self, now, at, stream):
        if not self._is_served(stream):
            return
        if stream.snapshot_due_ns == at:
            self._want_snapshot(now, stream, stream.reason)
        elif stream.deadline_ns == at:
            stream.deadline_ns = None
            if stream.has_data:
                self._resync(now, stream, "no whole book within its deadline")
            else:
                self._silent_stream(now, stream)

    def _silent_stream(self, now, stream):
        """Acknowledged, but no data in time: asked again once, then REJECTED, and tried again much later."""
        self.counts["first_data_missed"] += 1
        stream.silent += 1
        reason = f"acknowledged, but no data within {stream.plan.first_data_s:g} s"
        if stream.silent == 1:
            self._set(now, stream, "PENDING", reason + "; asked again")
            self._resubscribe(stream, now)
        else:
            self._set(now, stream, "REJECTED", "silent: " + reason)
            self._act(Status(stream, "REJECTED"))
            self._resubscribe(stream, now + REJECTED_RETRY_NS)

    def _unanswered(self, now, request):
        """The answer is lost or late. Data counts as an answer; else it is asked again once."""
        del self.requests[request.id]
        for stream in request.streams:
            if request.verb == "unsubscribe" or not stream.wanted:
                self._gone(stream)
            elif stream.has_data:
                self._accept(now, stream)
            elif stream.on_wire and not stream.acked:
                stream.silent += 1
                reason = f"no answer within {ACK_DEADLINE_NS // SECOND} s"
                if stream.silent == 1:
                    self._join_again(now, stream, 0, reason + "; asked again")
                else:
                    self._reject(now, stream, reason)
                    stream.due_ns = now + REJECTED_RETRY_NS
                    self.to_join[stream] = None

    def _healthy(self, now):
        if self.live_count():
            self.backoff.reset()
            self.healthy_ns = None
        else:
            self.healthy_ns = now + HEALTHY_NS

    # -- what goes out ----------------------------------------------------------------------------------------

    def _run(self, now):
        """Take every step that is due."""
        if self.stopped:
            return
        if self.state == "IDLE" and self.wanted():
            self._ask_permit(now)
        elif self.state == "WAIT_PERMIT" and not self.wanted():
            self._to("IDLE", "")
        elif self.state == "BACKOFF" and (self.due_ns is None or self.due_ns <= now):
            self.due_ns = None
            self._ask_permit(now)
        elif self.state == "UP" and not self.streams:
            self._close(now, 1000, "no streams left")
        elif self.state == "UP":
            self._pump(now)

    def _ask_permit(self, now):
        if not self.wanted():
            self._to("IDLE", "")
        elif self.permit_held:
            self._connect(now)
        else:
            self._to("WAIT_PERMIT", self.reason)
            self._act(WantPermit())

    def _pump(self, now):
        """Send what the budgets allow: signs of life first, then operations. Sets when to come back for the rest."""
        self.send_due_ns = None
        if self.pong is not None and self._may(now, CONTROL):
            self._act(SendPong(self.pong))
            self.counts["pongs"] += 1
            self.pong = None
        while self.replies and self._may(now, TEXT):
            self._act(Send(self.replies.popleft()))
        if self.ping_due_ns is not None and self.ping_due_ns <= now:
            self._ping(now)
        while self.state == "UP" and len(self.requests) < REQUEST_MAX and self._fill(now) and self._may(now, OPERATION):
            self._send(now, self.outbox.popleft())

    def _may(self, now, kind):
        """Whether a message of this kind may go now; if so it is charged, else send_due_ns says when to try again."""
        ready = self.pacer.ready_ns(now, kind)
        if ready <= now and kind == OPERATION and not self._permitted():
            return False
        if ready <= now:
            self.pacer.spend(now, kind)
            return True
        self.send_due_ns = ready if self.send_due_ns is None else min(ready, self.send_due_ns)
        return False

    def _permitted(self):
        """Whether an operation is within what the address's connections share; if not, one is asked for."""
        if not self.pacer.shared:
            return True
        if self.operations:
            self.operations -= 1
            return True
        if not self.operation_asked:
            self.operation_asked = True
            self._act(WantPermit("operation"))
        return False

    def _ping(self, now):
        text = self.venue.ping(self.plan.endpoint, self.request_id + 1)
        kind = TEXT if text else CONTROL
        if self._may(now, kind):
            self.request_id += 1
            self._act(Send(text) if text else SendPing(b""))
            self.ping_due_ns = now + self.ping_ns
        else:
            self.ping_due_ns = self.pacer.ready_ns(now, kind)

    def _fill(self, now):
        """Have a message in the outbox if any operation is due: leavers before joiners, refused parts on their own."""
        while not self.outbox:
            leavers = self._due(now, self.to_leave)
            if leavers:
                self._compose(now, "unsubscribe", leavers)
            elif self.groups:
                self._compose(now, "subscribe", [stream for stream in self.groups.popleft() if stream in self.to_join])
            elif joiners := self._due(now, self.to_join):
                self._compose(now, "subscribe", joiners)
            else:
                return False
        return True

    def _due(self, now, streams):
        """The first batch of streams whose operation is due; of the others the soonest sets send_due_ns."""
        due = []
        for stream in streams:
            if stream.due_ns <= now:
                due.append(stream)
                if len(due) == self.batch_max:
                    break
            elif self.send_due_ns is None or stream.due_ns < self.send_due_ns:
                self.send_due_ns = stream.due_ns
        return due

    def _compose(self, now, verb, streams):
        """Put the messages for these streams into the outbox. What the venue's file cannot say is rejected, alone."""
        if not streams:
            return
        by_wire = {stream.plan.wire: stream for stream in streams}
        make = self.venue.subscribe if verb == "subscribe" else self.venue.unsubscribe
        try:
            messages = make(self.plan.endpoint, [stream.venue_stream for stream in streams], self.request_id + 1)
        except ValueError as error:
            self._cannot_say(now, streams, str(error))
            return
        for request_id, text, parts in messages:
            self.request_id = max(self.request_id, request_id)
            self.outbox.append(Request(request_id, verb, text, [by_wire[part.wire] for part in parts]))
        for stream in streams:
            del (self.to_join if verb == "subscribe" else self.to_leave)[stream]
            stream.on_wire = verb == "subscribe"

    def _cannot_say(self, now, streams, reason):
        if len(streams) > 1:
            half = len(streams) // 2
            self.groups.extend((streams[:half], streams[half:]))
            return
        self.to_leave.pop(streams[0], None)
        self._reject(now, streams[0], reason)

    def _send(self, now, request):
        self._act(Send(request.text))
        self.counts["subscribe_sent"] += request.verb == "subscribe"
        request.deadline_ns = now + ACK_DEADLINE_NS
        if self.acks:
            self.requests[request.id] = request
        for stream in request.streams:
            if request.verb == "unsubscribe":
                self._unsubscribe_sent(now, stream)
            elif not stream.wanted:      # it left while the message waited
                stream.on_wire = True
                self.to_leave[stream] = None
            else:
                self._subscribe_sent(now, stream)

    def _unsubscribe_sent(self, now, stream):
        stream.asked = False
        if stream.again and stream.wanted:
            stream.again = stream.has_data = stream.acked = False
            stream.due_ns = 0
            self.to_join[stream] = None
        elif not self.acks:
            self._gone(stream)

    def _subscribe_sent(self, now, stream):
        stream.asked = True
        stream.has_data = stream.acked = False
        self._set(now, stream, "SUBSCRIBING", stream.reason if stream.silent else "")
        self._act(Resubscribed(stream))
        if not self.acks:
            self._accept(now, stream)

    # -- small things -----------------------------------------------------------------------------------------

    def _act(self, action):
        self.actions.append(action)

    def _set(self, now, stream, state, reason):
        if stream.state != state:
            stream.since_ns = now
        elif stream.reason == reason:
            return
        stream.state, stream.reason = state, reason
        self.changed[stream] = None

    def _wait(self, stream, deadline_ns):
        stream.deadline_ns = deadline_ns
        if deadline_ns is not None:
            self._push(deadline_ns, stream)

    def _push(self, at, stream):
        self.heap_n += 1
        heapq.heappush(self.heap, (at, self.heap_n, stream))


def silence_ns(liveness):
    """How long a connection may be without any frame, by what the venue promises to send or answer."""
    if liveness.get("silence_s"):
        return int(liveness["silence_s"] * SECOND)
    if liveness.get("server_ping") not in (None, "none") and liveness.get("server_ping_s"):
        return int((liveness["server_ping_s"] * 1.5 + 2) * SECOND)
    if liveness.get("client_ping") and liveness.get("client_ping_s"):
        return int((liveness["client_ping_s"] + 10) * SECOND)
    return int(liveness.get("idle_close_s") or 0) * SECOND or SILENCE_NS


def _is_limit(text):
    text = text.lower()
    return any(word in text for word in LIMIT_WORDS)


def _first(items):
    for item in items:
        return [item]
    return []
