"""One connection of a worker: carries what the state machine (stream.py) decides to the session and the publisher, and
what they report back to it. Runs in the worker's loop, a few times a second a connection; never per frame."""
import asyncio

from feedhandler import control
from feedhandler.venue import CHANNELS
from feedhandler.worker import stream as machine, watch
from feedhandler.worker.session import STATUS, Refused, connect

ROW_STATES = {"IDLE": 3, "WAIT_PERMIT": 4, "CONNECTING": 1, "UP": 2, "CLOSING": 3, "BACKOFF": 4, "CLOSED": 3}
SHOWN_STATES = {"WAIT_PERMIT": ("IDLE", "waiting for a permit"), "CLOSING": ("UP", "closing")}
LINE_LOOK_NS = 100_000_000   # how often the second line of a stream looks whether it carries it
NEVER = 1 << 63


class Link:
    """plan is a control.ConnectionPlan; index the session's row in the counters and its number in records."""

    def __init__(self, worker, plan, index):
        self.worker = worker
        self.plan = plan
        self.index = index
        self.venue = worker.venue(plan.venue)
        self.session = None
        self.task = None
        self.leaving = False         # not in the plan any more, but streams of it linger here
        self.retiring = False        # nor do any linger: forgotten once it is down
        self.changed = True          # since it was last reported
        self.due_ns = NEVER
        self.look_ns = 0             # when the watch looks at it next
        self.queue_size = 0
        self.busy = False
        self.second_lines = {}       # Stream → None: subscribed here while another link carries it
        self.channels = {}           # (instrument, channel) → [Stream]
        now = worker.clock.monotonic_ns()
        self.connection = machine.Connection(plan, self.venue, worker.random(), now)
        worker.figures.row_open(index, plan.id, plan.venue, plan.endpoint, plan.url)

    # -- from the worker ------------------------------------------------------------------------------------------

    def start(self):
        self.tell(self.connection.start)

    def replan(self, plan):
        self.plan = plan
        self.tell(self.connection.replan, plan)

    def retire(self):
        """Unsubscribe what it carries, close, and be forgotten."""
        self.retiring = True
        self.replan(self.plan.with_streams([]))

    def tick(self, now):
        session = self.session
        if session is not None and self.connection.state == "UP" and session.is_dead():
            session.abort()
            self.closed(session, 1006, "the socket was reset")
            return
        heard_ns = now - max(0, self.worker.clock.time_ns() - session.frame_ns_last) if session is not None and session.frames else 0
        self.look_at_lines(now)
        self.tell(self.connection.tick, session.frames if session is not None else 0, heard_ns, now=now)

    def look(self, now):
        """Whether what comes is in time; links take their looks at different beats."""
        self.look_ns = now + watch.LOOK_NS + (self.index % 20 * watch.LOOK_NS // 20 if not self.look_ns else 0)
        known = self.worker.watch.connections.get(self.index)
        if self.session is None or known is None or self.connection.state != "UP":
            return
        frames, size, _, lag_ns = self.worker.figures.session_figures(self.index)
        self.queue_size = self.session.queue_size()
        before = known.verdict
        verdict = self.worker.watch.look(now, self.index, watch.Sample(frames, size, lag_ns, self.queue_size, len(self.channels)))
        if verdict.is_alarm and not before.is_alarm:
            self.tell(self.connection.throttled, verdict.reason, verdict.late_ns)
        elif before.is_alarm and not verdict.is_alarm:
            self.tell(self.connection.recovered)
        elif verdict is not before:
            self.worker.touched(self)

    def tell(self, event, *arguments, now=None):
        """An event to the state machine, then everything it asks for. Asked for in between, it is done after."""
        event(now or self.worker.clock.monotonic_ns(), *arguments)
        if self.busy:
            return
        self.busy = True
        try:
            while actions := self.connection.take():
                for action in actions:
                    getattr(self, "do_" + type(action).__name__.lower())(action)
        finally:
            self.busy = False
        self.due_ns = self.connection.next_deadline() or NEVER
        if self.second_lines:
            self.due_ns = min(self.due_ns, self.worker.clock.monotonic_ns() + LINE_LOOK_NS)
        self.worker.touched(self)

    def stream_of(self, instrument, channel):
        return self.channels.get((instrument, channel), ())

    def is_down(self):
        return self.connection.state in ("IDLE", "CLOSED") and self.task is None

    # -- from the session -----------------------------------------------------------------------------------------

    def opened(self, session):
        if session is self.session:
            self.worker.watch.open(self.index, self.plan.venue)
            self.tell(self.connection.opened)

    def control(self, session, payload):
        if session is self.session:
            self.tell(self.connection.control, self.venue.control(payload))

    def ping(self, session, payload):
        if session is self.session:
            self.tell(self.connection.ping, payload)

    def notices(self):
        self.worker.notices()

    def failed(self, session, error):
        self.worker.exception(error)

    def closed(self, session, code, reason):
        if session is self.session:
            self.session = None
            self.tell(self.connection.closed, code, reason)

    async def connect(self, session, url):
        try:
            await connect(session, url, self.worker.tls(self.plan.ca_file) if url.startswith("wss:") else None, self.plan.source)
        except Refused as refused:
            self.worker.figures.error(refused.code, self.index, f"{self.plan.venue} {self.plan.endpoint}: {refused.reason}")
            if session is self.session:
                self.session = None
                self.task = None
                self.tell(self.connection.connect_failed, refused.code, refused.reason, refused.retry_s)
        except Exception as error:
            self.worker.exception(error)
            if session is self.session:
                self.session = None
                self.task = None
                self.tell(self.connection.connect_failed, 0, f"{type(error).__name__}: {error}")
        finally:
            if self.task is asyncio.current_task():
                self.task = None

    # -- what the state machine asks for -----------------------------------------------------------------------------

    def do_connect(self, action):
        self.session, self.task = self.worker.dial(self, action.url)

    def do_send(self, action):
        if self.session is not None:
            self.session.send(action.text)

    def do_sendping(self, action):
        if self.session is not None:
            self.session.send_ping(action.payload)

    def do_sendpong(self, action):
        if self.session is not None:
            self.session.send_pong(action.payload)

    def do_close(self, action):
        if self.session is not None:
            self.session.close(action.code, action.reason)

    def do_abort(self, action):
        session, self.session = self.session, None
        if session is not None:
            session.abort()
        if self.task is not None:
            self.task.cancel()
            self.task = None

    def do_wantpermit(self, action):
        self.worker.want_permit(self, action.kind)

    def do_wantsnapshot(self, action):
        plan = action.stream.plan
        self.worker.say(control.WantSnapshot(plan.id, plan.instrument, action.reason))

    def do_holdback(self, action):
        self.worker.publisher.hold(action.stream.plan.instrument)

    def do_addstream(self, action):
        plan = action.stream.plan
        self.worker.publisher.add_stream(self.venue, plan.instrument, plan.channel, plan.depth, plan.snapshot, action.stream.private)
        self.worker.publisher.backed(plan.instrument, plan.backed)
        self.worker.moves.ready.pop(plan.instrument, None)      # what was said of it before is of other streams
        self.channels.setdefault((plan.instrument, plan.channel), []).append(action.stream)

    def do_backstream(self, action):
        self.worker.publisher.backed(action.stream.plan.instrument, action.stream.plan.backed)

    def do_removestream(self, action):
        plan = action.stream.plan
        self.worker.publisher.remove_stream(plan.instrument, plan.channel, self.index)
        if action.stream.late_told and not action.stream.private and self.worker.carried_elsewhere(self, plan.instrument, plan.channel):
            self.worker.publisher.status(plan.instrument, STATUS["LIVE"], CHANNELS.index(plan.channel))
        self.second_lines.pop(action.stream, None)
        streams = self.channels[plan.instrument, plan.channel]
        streams.remove(action.stream)
        if not streams:
            del self.channels[plan.instrument, plan.channel]

    def do_resubscribed(self, action):
        """First data is pending, unless another line carries the stream: then this one must not disturb it."""
        plan = action.stream.plan
        self.worker.publisher.join_line(plan.instrument, plan.channel, self.index)     # it may have been told to leave
        if self.worker.carried_elsewhere(self, plan.instrument, plan.channel):
            self.second_lines[action.stream] = None
        else:
            self.second_lines.pop(action.stream, None)
            self.worker.publisher.resubscribed(plan.instrument, plan.channel)

    def do_sessionup(self, action):
        self.worker.figures.add("sessions_opened", 1)
        self.worker.publisher.status(None, STATUS["SESSION_UP"], self.plan.id, session=self.index)

    def do_sessionlost(self, action):
        self.worker.figures.add("sessions_closed", 1)
        self.worker.figures.error(action.code, self.index, f"{self.plan.venue} {self.plan.endpoint}: connection closed with "
                                                           f"{action.code} {action.reason}".rstrip())
        self.second_lines.clear()
        self.worker.watch.close(self.index)
        before = {stream: self._gap_count(stream) for stream in action.streams}
        self.worker.publisher.session_lost(self.index, sorted({stream.plan.instrument for stream in action.streams}))
        for stream, count in before.items():
            if self._gap_count(stream) > count:
                stream.gap_ns, stream.gap_reason = self.worker.clock.monotonic_ns(), f"connection closed with {action.code} {action.reason}".rstrip()
        self.worker.publisher.status(None, STATUS["SESSION_DOWN"], self.plan.id, action.code, session=self.index)

    def _gap_count(self, stream):
        return self.worker.publisher.stream_stats(stream.plan.instrument, stream.plan.channel)[2]

    def do_status(self, action):
        plan = action.stream.plan
        if not action.stream.private and not self.worker.carried_elsewhere(self, plan.instrument, plan.channel):
            silent_ns = self.worker.clock.monotonic_ns() - self.connection.heard_ns if action.code == "STALE" else 0
            self.worker.publisher.status(plan.instrument, STATUS[action.code], CHANNELS.index(plan.channel), silent_ns, action.late_ns,
                                         session=self.index)

    def do_complain(self, action):
        self.worker.figures.error(int(action.code) if action.code.isdigit() else 0, self.index,
                                  f"{self.plan.venue}: {action.code} {action.reason}")

    def do_announced(self, action):
        self.worker.say(control.Closing(self.plan.id, action.reason, action.lead_s))

    def do_punish(self, action):
        self.worker.say(control.Punished(self.plan.venue, self.plan.endpoint, action.code, action.reason, action.retry_s))

    # -- data, and what to say of it ------------------------------------------------------------------------------

    def look_at_lines(self, now):
        """A second line gets no notices of its own: it is well when its session delivers and the book is live."""
        for stream in list(self.second_lines):
            plan = stream.plan
            if self.worker.publisher.line(plan.instrument, plan.channel, self.index) == "met":
                del self.second_lines[stream]
                whole = plan.channel != "book" or self.worker.publisher.stream_stats(plan.instrument, "book")[3] == "LIVE"
                self.tell(self.connection.live if whole else self.connection.first_data, stream)

    def counts(self):
        """What happened since the last call, by counter name."""
        counts = dict(self.connection.counts)
        self.connection.counts.clear()
        return counts

    def stream_states(self, everything):
        streams = self.connection.wanted() if everything else self.connection.changes()
        offset_ns = self.worker.clock_offset_ns()
        for stream in streams:
            if stream.gap_ns:
                self.worker.last_gaps[stream.id] = stream.gap_ns + offset_ns, stream.gap_reason
            if self.worker.moves.is_told_elsewhere(self, stream):
                continue
            last_ns, messages, gaps, _ = self.worker.publisher.stream_stats(stream.plan.instrument, stream.plan.channel)
            records, bursts = self.worker.publisher.load(stream.plan.instrument, stream.plan.channel) if everything else (0, None)
            yield control.StreamState(stream.id, stream.state, stream.reason, stream.since_ns + offset_ns, last_ns, messages, max(gaps, stream.gaps),
                                      *self.worker.last_gaps.get(stream.id, (0, "")), records, bursts)

    def session_state(self):
        connection = self.connection
        state, reason = SHOWN_STATES.get(connection.state, (connection.state, connection.reason))
        opened_ns = connection.opened_ns + self.worker.clock_offset_ns() if connection.state == "UP" else 0
        streams, live = len(connection.wanted()), connection.live_count()
        gaps = sum(stream.gaps for stream in connection.streams.values())
        self.worker.figures.row_state(self.index, ROW_STATES[connection.state], opened_ns, connection.reconnects, streams, live,
                                      gaps, connection.close_code)
        known = self.worker.watch.connections.get(self.index) or watch.ConnectionWatch(self.plan.venue)
        return control.SessionState(self.plan.id, self.index, state, reason or connection.reason or known.verdict.reason, opened_ns,
                                    connection.reconnects, connection.close_code, streams, live, queue_bytes=self.queue_size,
                                    lag_ns=known.late_ns, health=known.verdict.state,
                                    messages_per_s=known.verdict.messages_per_s if known.verdict.is_alarm else known.rate,
                                    **self.worker.figures.line_figures(self.index))
