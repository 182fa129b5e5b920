"""Whether connections bring what the venue sends, in time: samples and a clock in, verdicts out. No I/O.

A connection is looked at every LOOK_NS. How late its events are (receive time minus event time) means nothing by itself:
clocks differ and venues are far. What counts is the trend against the connection's own baseline:

    THROTTLED   ever later while nothing waits in our kernel: the venue holds back; or a small part of its usual rate comes
                while the venue's other connections bring theirs
    BACKLOGGED  bytes wait in our kernel, or it is ever later while our loop is: we are too slow
    QUIET       less than usual, and in time: the market sleeps. No alarm.

A step is no trend: a clock that is set, a pause that ends, another route. All of a venue's connections late at once is the
venue, and believed only after VENUE_WIDE_LOOKS. A false alarm is worse than one a second late: every verdict must hold for a
while before it is told, and its end as well.
"""
import collections
import dataclasses

MS, SECOND = 1_000_000, 1_000_000_000
LOOK_NS = 100 * MS
SPANS = ((SECOND, 3), (6 * SECOND, 6))   # looked back over, and parts: a rise of 30 ms a second shows in the first, one of 10 in the second
STEP_NS = 10 * MS           # from each part of a span to the next, at least …
STEP_PART = 4               # … and a quarter of the largest such step: all at once is no trend …
EXCESS_NS = 100 * MS        # … and so much above the baseline
STEP_SPREADS, EXCESS_SPREADS = 2, 4   # … or so many times what is usual, where more is
LEVEL_NS = SECOND // 3      # the end of a second, whose lag is its level
CONFIRM_LOOKS = 5           # a rise must be seen at so many looks more than not
VENUE_WIDE_LOOKS = 50       # … and so many where more than half of the venue's connections rise
CALM_NS = SECOND            # all is well for so long: the verdict ends
LEVEL_MAX = 30              # seconds whose lag makes the baseline
SECONDS_LEAST = 3           # nothing is said of a connection that is younger
PLATEAU_NS, PLATEAU_MAX_NS = 10 * SECOND, SECOND   # late, but no later for so long and by less than this: the new baseline
QUEUE_SIZE = 64 << 10       # bytes in the kernel: more than one read of the session takes
QUEUE_NS = 200 * MS         # … and more than come in so long
QUEUE_LOOKS = 15            # … at so many looks in turn
RATE_LEVEL_MAX, RATE_LEAST = 60, 50   # seconds whose rate is the usual one; usual messages a second that can be missed
RATE_PART, RATE_QUIET, RATE_PEERS = 0.25, 0.5, 0.75   # of the usual: throttled, quiet, what the others must bring
RATE_STREAMS = 3            # on fewer streams a halt of one instrument looks the same
RATE_CONFIRM_NS = 700 * MS
OURS_LOOKS = 4              # of the last ten with a queue in the kernel, or a turn of our loop half as late: the delay is ours
BEHIND_LATE_NS = 50 * MS    # a turn of the loop so late …
BEHIND_LOOKS = 10           # … at so many looks in turn: the worker is behind
BEHIND_CALM_NS = 2 * SECOND


@dataclasses.dataclass(slots=True)
class Sample:
    """One look at a connection that is up. frames, bytes: since it was opened, or longer; lag_ns: of the timeliest event since
    the last look, None where none came; queue_size: bytes unread in the kernel."""
    frames: int
    bytes: int = 0
    lag_ns: int | None = None
    queue_size: int = 0
    streams: int = 1


@dataclasses.dataclass(slots=True, frozen=True)
class Verdict:
    """state: OK, QUIET, THROTTLED or BACKLOGGED; late_ns: above the baseline; messages_per_s: of the last second."""
    state: str
    reason: str = ""
    late_ns: int = 0
    messages_per_s: float = 0.0

    @property
    def is_alarm(self):
        return self.state in ("THROTTLED", "BACKLOGGED")


class ConnectionWatch:
    """One connection, from its opening to its end."""

    def __init__(self, venue):
        self.venue = venue
        self.windows = collections.deque(maxlen=SPANS[-1][0] // LOOK_NS + 1)   # (now, frames, lag or None, queued)
        self.levels = collections.deque(maxlen=LEVEL_MAX)            # lag at the end of a second
        self.rates = collections.deque(maxlen=RATE_LEVEL_MAX)        # messages of a second
        self.baseline_ns = self.spread_ns = self.late_ns = 0
        self.second = None           # (now, frames, bytes) when the present second began
        self.seconds = 0
        self.streams = 0
        self.rate = self.usual = self.floor = self.bytes_per_s = 0.0
        self.rises = 0               # looks at which it rose, less those at which it did not
        self.missing_ns = self.calm_ns = self.plateau_ns = None     # since when
        self.plateau_late_ns = 0
        self.queued_looks = 0
        self.cause = ""
        self.verdict = Verdict("OK")

    def look(self, now, sample, peers, turns):
        """The Verdict as of now. peers: all ConnectionWatches of the worker; turns: how late our loop was at each look of the last
        second, ns."""
        self._take(now, sample)
        if self.verdict.is_alarm:
            self._look_for_the_end(now, peers)
        elif self.seconds >= SECONDS_LEAST:
            self._look_for_trouble(now, peers, turns)
        return self.verdict

    # -- what is known -------------------------------------------------------------------------------------------

    def _take(self, now, sample):
        queued = sample.queue_size >= QUEUE_SIZE and sample.queue_size * SECOND >= QUEUE_NS * self.bytes_per_s
        self.windows.append((now, sample.frames, sample.lag_ns, queued))
        self.queued_looks = self.queued_looks + 1 if queued else 0
        if sample.lag_ns is not None:
            self.late_ns = sample.lag_ns - self.baseline_ns if self.levels else 0
        if sample.streams != self.streams:       # another rate is to be expected
            self.streams = sample.streams
            self.rates.clear()
            self.usual = 0.0
        if self.second is None or now - self.second[0] >= SECOND:
            self._second(now, sample.frames, sample.bytes)

    def _second(self, now, frames, size):
        """Once a second: the baseline and the usual rate, as long as nothing is wrong."""
        begun, self.second = self.second, (now, frames, size)
        if begun is None:
            return
        self.seconds += 1
        self.rate = (frames - begun[1]) * SECOND / (now - begun[0])
        self.bytes_per_s = (size - begun[2]) * SECOND / (now - begun[0])
        if self.verdict.is_alarm or self.rises or self.missing_ns is not None:
            return
        self.rates.append(self.rate)
        if len(self.rates) == RATE_LEVEL_MAX:
            self.usual, self.floor = sum(self.rates) / RATE_LEVEL_MAX, min(self.rates)
        lags = [lag for at, _, lag, _ in self.windows if lag is not None and now - at < LEVEL_NS]
        if lags:
            self.levels.append(min(lags))
            self._settle()

    def _settle(self):
        """The spread is that of neighbours about their trend: a rise does not hide itself in it."""
        levels = list(self.levels)
        self.baseline_ns = sorted(levels)[len(levels) // 2]
        trend = (levels[-1] - levels[0]) // max(1, len(levels) - 1)
        self.spread_ns = sum(abs(after - before - trend) for before, after in zip(levels, levels[1:])) // len(levels)

    @property
    def excess_ns(self):
        return max(EXCESS_NS, EXCESS_SPREADS * self.spread_ns)

    def _is_rising(self, now):
        """Whether every part of a span came later than the one before it: once is a step, each time a trend."""
        least = max(STEP_NS, STEP_SPREADS * self.spread_ns)
        for span, count in SPANS:
            parts = [None] * count
            for at, _, lag, _ in reversed(self.windows):
                part = count * (now - at) // span
                if part >= count:
                    break
                if lag is not None and (parts[part] is None or lag < parts[part]):
                    parts[part] = lag
            if None not in parts and parts[0] - self.baseline_ns >= self.excess_ns:
                steps = [later - earlier for later, earlier in zip(parts, parts[1:])]
                if min(steps) >= max(least, max(steps) // STEP_PART):
                    return True
        return False

    # -- trouble -------------------------------------------------------------------------------------------------

    def _look_for_trouble(self, now, peers, turns):
        if self.queued_looks >= QUEUE_LOOKS:
            self._alarm("BACKLOGGED", "queue", "what came waits unread in the kernel, for more than it may: this worker is too slow")
            return
        self._mark_rise(now)
        if self.rises >= CONFIRM_LOOKS and (self.rises >= VENUE_WIDE_LOOKS or not self._is_wide(peers)):
            queued = sum(queued for _, _, _, queued in list(self.windows)[-10:])
            if queued >= OURS_LOOKS or sum(2 * turn > self.late_ns for turn in turns) >= OURS_LOOKS:
                self._alarm("BACKLOGGED", "lag", f"{_s(self.late_ns)} late and falling behind: this worker is too slow")
            else:
                self._alarm("THROTTLED", "lag", f"the venue holds back: {_s(self.late_ns)} late and ever later, at {self._rate_now():,.0f} messages/s")
            return
        self._mark_missing(now, peers)
        if self.missing_ns is not None and now - self.missing_ns >= RATE_CONFIRM_NS:
            self._alarm("THROTTLED", "rate", f"the venue sends {self._rate_now():,.0f} messages/s here where {self.usual:,.0f} are usual, and on "
                                             f"other connections as always")
            return
        quiet = bool(self.usual) and self.rate < RATE_QUIET * self.usual
        if quiet != (self.verdict.state == "QUIET"):
            self.verdict = Verdict("QUIET", f"{self.rate:,.0f} messages/s, usual are {self.usual:,.0f}") if quiet else Verdict("OK")

    def _mark_rise(self, now):
        if self.windows[-1][2] is None:
            return               # nothing came that could tell
        if self.late_ns >= self.excess_ns and self._is_rising(now):
            self.rises += 1
        elif self.rises:
            self.rises -= 1

    def _is_wide(self, peers):
        mine = [peer for peer in peers if peer is not self and peer.venue == self.venue and peer.levels]
        return 2 * sum(peer.rises > 0 or peer.verdict.is_alarm for peer in mine) > len(mine)

    def _mark_missing(self, now, peers):
        """Less than ever in the last minute, on a connection where that cannot be one instrument's doing."""
        rate = self._rate_now()
        missing = (self.usual >= RATE_LEAST and self.streams >= RATE_STREAMS and not self.windows[-1][3]
                   and rate < RATE_PART * self.usual and 2 * rate < self.floor and self._peers_bring_theirs(peers))
        self.missing_ns = (self.missing_ns or now) if missing else None

    def _peers_bring_theirs(self, peers):
        mine = [peer for peer in peers if peer is not self and peer.venue == self.venue and peer.usual]
        usual = sum(peer.usual for peer in mine)
        return usual >= RATE_LEAST and sum(peer._rate_now() for peer in mine) >= RATE_PEERS * usual

    def _rate_now(self):
        """Messages a second of the last ten looks."""
        if len(self.windows) < 2:
            return 0.0
        at, frames, _, _ = self.windows[-min(11, len(self.windows))]
        return (self.windows[-1][1] - frames) * SECOND / max(1, self.windows[-1][0] - at)

    def _alarm(self, state, cause, reason):
        self.cause = cause
        self.rises, self.missing_ns, self.calm_ns, self.plateau_ns = 0, None, None, None
        self.verdict = Verdict(state, reason, self.late_ns, self._rate_now())

    # -- its end -------------------------------------------------------------------------------------------------

    def _look_for_the_end(self, now, peers):
        if self.windows[-1][2] is None and self.cause == "lag":
            return               # nothing came that could tell
        if self.cause == "rate":
            calm = self._rate_now() >= RATE_QUIET * self.usual or not self._peers_bring_theirs(peers)
        else:
            calm = 2 * self.late_ns < self.excess_ns if self.cause == "lag" else not self.queued_looks
        self.calm_ns = (self.calm_ns or now) if calm else None
        if self.calm_ns is not None and now - self.calm_ns >= CALM_NS:
            self.verdict, self.calm_ns = Verdict("OK"), None
        elif self.cause == "lag" and not calm and self._is_plateau(now):
            self.levels.clear()
            self.levels.append(self.windows[-1][2])
            self._settle()
            self.verdict = Verdict("OK")

    def _is_plateau(self, now):
        """A little later than it was, and no later any more: another route, not a queue that grows."""
        if self.plateau_ns is None or abs(self.late_ns - self.plateau_late_ns) > max(STEP_NS, STEP_SPREADS * self.spread_ns):
            self.plateau_ns, self.plateau_late_ns = now, self.late_ns
        return self.late_ns < PLATEAU_MAX_NS and now - self.plateau_ns >= PLATEAU_NS


class Watch:
    """All connections of one worker, and the worker itself."""

    def __init__(self):
        self.connections = {}        # index → ConnectionWatch
        self.turns = collections.deque(maxlen=BEHIND_LOOKS)     # latest turn of the loop between two looks, ns
        self.turn_late_ns = 0
        self.calm_ns = None
        self.behind = ""             # why this worker is falling behind, or ""

    def open(self, index, venue):
        """A connection came up: nothing is known of it."""
        self.connections[index] = ConnectionWatch(venue)

    def close(self, index):
        self.connections.pop(index, None)

    def look(self, now, index, sample):
        """The Verdict on this connection; the same object as long as nothing changed."""
        return self.connections[index].look(now, sample, self.connections.values(), self.turns)

    def late(self, ns):
        """A turn of the loop was so late."""
        self.turn_late_ns = max(self.turn_late_ns, ns)

    def look_at_worker(self, now):
        """Every LOOK_NS: whether `behind` is another sentence than before."""
        self.turns.append(self.turn_late_ns)
        self.turn_late_ns = 0
        before = self.behind
        backlogged = sum(one.verdict.state == "BACKLOGGED" for one in self.connections.values())
        if backlogged or (len(self.turns) == BEHIND_LOOKS and min(self.turns) >= BEHIND_LATE_NS):
            self.calm_ns = None
            if not before:
                self.behind = (f"{backlogged} of its connections {'are' if backlogged > 1 else 'is'} read too slowly" if backlogged else
                               f"every turn of its loop is {min(self.turns) // MS} ms late or more")
        elif before:
            self.calm_ns = self.calm_ns or now
            if now - self.calm_ns >= BEHIND_CALM_NS:
                self.behind, self.calm_ns = "", None
        return self.behind != before


def _s(ns):
    return f"{ns / SECOND:.1f} s"
