"""How much one connection carries: streams are added step by step, and each step gets a verdict. Pure.

A venue that holds a connection back queues what is due (event times fall behind), drops it (gaps), or closes. Event times are
compared with the same connection's first step only: clocks differ between machines, and a negative lag is as normal as a large one.

    fine        everything due came, in time
    throttled   the venue holds back: lag grows or stands high while our receive queue is empty, data is missing, or it says so
    behind      we hold back: our own receive queue is full; more load would say nothing about the venue
    dropped     the venue closed the connection
"""
import dataclasses
import math
import statistics

FINE, THROTTLED, BEHIND, DROPPED = "fine", "throttled", "behind", "dropped"
RISE_MS_PER_S = 20.0       # of lag: a connection that carries 2 % less than is due falls behind this fast
RISE_MS = 50.0             # and at least by so much within the step: less is one late timer
LAG_HIGH_MS = 250.0        # a standing lag above the first step's that no good connection has
SHORT = 0.7                # of what is due; markets calm down too, so that this alone is no proof
QUEUE_BUSY = 256 << 10     # bytes we left unread, half of the time: it is we who are late
SAMPLE_MIN = 8             # lags from which a rise is told


@dataclasses.dataclass(slots=True)
class Step:
    """What one step brought. Rates are a second's; lags are ms over the first step's, None: the streams tell no event time."""
    streams: int
    seconds: float
    due_per_s: float | None = None      # by the rates its streams had while all was well; None: nothing is known yet
    messages_per_s: float = 0.0
    bytes_per_s: float = 0.0
    lag_p50_ms: float | None = None
    lag_p99_ms: float | None = None
    lag_rise_ms_per_s: float | None = None
    queue_bytes: int = 0                # unread in our kernel: median of the step
    gaps: int = 0
    closed: str = ""                    # close code and reason, "" while it is open
    complaint: str = ""                 # what the venue said of limits
    verdict: str = FINE
    reason: str = ""


def sizes(most, steps):
    """How many streams each step has: evenly up to `most`, every step more than the one before."""
    return sorted({max(1, math.ceil(most * step / steps)) for step in range(1, steps + 1)}) if most else []


def due(streams, rates):
    """Messages a second that streams would bring: their own rate where it was measured, else the mean of their channel.
    streams: (id, channel); rates: {id: (channel, rate)}. None: a channel was never measured."""
    by_channel = {}
    for channel, rate in rates.values():
        by_channel.setdefault(channel, []).append(rate)
    if any(channel not in by_channel for _, channel in streams):
        return None
    means = {channel: statistics.fmean(found) for channel, found in by_channel.items()}
    return sum(rates[id][1] if id in rates else means[channel] for id, channel in streams)


class Lags:
    """Event-time lags over the baseline. Each kind of record has its own: a venue stamps trades and books at different places."""

    def __init__(self):
        self.baseline = {}      # kind → ms
        self.samples = []       # (kind, seconds into the step, ms) of this step

    def add(self, kind, at_s, lag_ms):
        self.samples.append((kind, at_s, lag_ms))

    def step(self):
        """(p50, p99, rise a second) of the step that ends here, each None where nothing told. A kind met first becomes its own baseline."""
        samples, self.samples = self.samples, []
        for kind in {kind for kind, _, _ in samples} - self.baseline.keys():
            self.baseline[kind] = statistics.median(lag for its, _, lag in samples if its == kind)
        over = [(at_s, lag - self.baseline[kind]) for kind, at_s, lag in samples]
        if not over:
            return None, None, None
        ordered = sorted(lag for _, lag in over)
        return statistics.median(ordered), ordered[(len(ordered) * 99 - 1) // 100], rise(over)


def rise(samples):
    """ms a second by which lags grow: from the median of the earlier half to that of the later. samples: (seconds, ms). None: too few."""
    if len(samples) < SAMPLE_MIN:
        return None
    ordered = sorted(samples)
    half = len(ordered) // 2
    (t0, lag0), (t1, lag1) = (tuple(map(statistics.median, zip(*part))) for part in (ordered[:half], ordered[half:]))
    return (lag1 - lag0) / (t1 - t0) if t1 > t0 else None


def judge(step):
    """Give a step its verdict and the reason, in figures."""
    step.verdict, step.reason = _judged(step)
    return step


def _judged(step):
    if step.closed:
        return DROPPED, f"the venue closed the connection with {step.closed}"
    if step.complaint:
        return THROTTLED, f"the venue said: {step.complaint}"
    grows = step.lag_rise_ms_per_s is not None and step.lag_rise_ms_per_s >= max(RISE_MS_PER_S, 2 * RISE_MS / step.seconds)
    high = step.lag_p50_ms is not None and step.lag_p50_ms >= LAG_HIGH_MS
    if step.queue_bytes >= QUEUE_BUSY:
        return BEHIND, f"{step.queue_bytes:,} bytes lay unread here: this machine is too slow, not the venue"
    if grows:
        return THROTTLED, f"lag grew by {step.lag_rise_ms_per_s:,.0f} ms a second"
    if high:
        return THROTTLED, f"lag stood {step.lag_p50_ms:,.0f} ms above the first step's"
    if not step.messages_per_s:
        return FINE, "nothing came: the streams are silent"
    short = step.due_per_s is not None and step.messages_per_s < SHORT * step.due_per_s
    if short and step.gaps:
        return THROTTLED, f"{step.messages_per_s:,.0f} of about {step.due_per_s:,.0f} messages/s came, with {step.gaps} gaps"
    if short:
        return FINE, f"about {step.due_per_s:,.0f} messages/s were expected; without lag or gaps the market was just quieter"
    return FINE, ""


def goes_on(step, cautious):
    """Whether a larger step may follow. cautious: not after the first sign of a limit; else until the venue drops us."""
    return step.verdict == FINE or (step.verdict == THROTTLED and not cautious and not step.complaint)


def summary(steps):
    """What the steps say together: {verdict, carried_per_s, held_to_per_s, text}. carried: the most that came in time; held_to: what a
    throttled connection still brought, None where none was."""
    fine = [step for step in steps if step.verdict == FINE]
    held = next((step for step in steps if step.verdict == THROTTLED), None)
    bad = [step for step in steps if step.verdict != FINE]
    carried = max((step.messages_per_s for step in fine), default=0.0)
    said = [f"the connection carried {carried:,.0f} messages/s" if carried else "no step was carried well" if bad else "nothing was measured"]
    if held is not None:
        said.append(f"at about {_offered(held):,.0f} it was throttled and brought {held.messages_per_s:,.0f}: {held.reason}")
    said += [f"at about {_offered(step):,.0f} {step.reason}" for step in bad if step.verdict in (DROPPED, BEHIND)]
    if not bad and carried:
        said.append(f"no limit was met with {fine[-1].streams} streams")
    return {"verdict": bad[-1].verdict if bad else FINE if carried else "", "carried_per_s": round(carried, 1),
            "held_to_per_s": None if held is None else round(held.messages_per_s, 1), "text": "; ".join(said)}


def _offered(step):
    return step.due_per_s or step.messages_per_s


def advised(found, configured):
    """messages_per_s to configure for the endpoint: what was carried, or what a throttled connection was held to if that is less, rounded
    down to two digits. None: `configured` need not change."""
    carried = min(found["carried_per_s"], found["held_to_per_s"] or found["carried_per_s"])
    if carried < 10 or found["verdict"] in ("", BEHIND) or (found["verdict"] == FINE and carried <= configured):
        return None
    unit = 10 ** max(0, int(math.log10(carried)) - 1)
    return int(carried // unit * unit)
