"""What a venue counts, and how close the client came to each limit.

Every limit has a Meter with the highest use ever reached, so that a test can prove "never above 80 %".
Times come from the caller: nothing here reads a clock. Nothing blocks; what is over a limit is answered
with False, and the venue's side chooses the punishment.
"""
import collections
import dataclasses


@dataclasses.dataclass(slots=True)
class Meter:
    """One documented limit: the most that was used of it, and how often it was broken."""
    name: str
    limit: float
    used_max: float = 0
    hits: int = 0
    violations: int = 0

    def note(self, used):
        """Record a use of the limit. Returns True while it holds."""
        self.hits += 1
        self.used_max = max(self.used_max, used)
        if used > self.limit:
            self.violations += 1
            return False
        return True

    def document(self):
        return {"limit": self.limit, "used_max": self.used_max, "hits": self.hits, "violations": self.violations,
                "ratio": round(self.used_max / self.limit, 4) if self.limit else 0}


class Usage:
    """All meters of a simulator, by "venue: limit"."""

    def __init__(self):
        self.meters = {}

    def meter(self, name, limit):
        return self.meters.setdefault(name, Meter(name, limit))

    def document(self):
        return {name: meter.document() for name, meter in sorted(self.meters.items())}


class Window:
    """At most `meter.limit` in any per_s seconds: a strict rolling window, not a bucket."""

    def __init__(self, meter, per_s):
        self.meter = meter
        self.per_s = per_s
        self.events = collections.deque()
        self.used = 0

    def hit(self, now, weight=1):
        while self.events and now - self.events[0][0] >= self.per_s:
            self.used -= self.events.popleft()[1]
        self.events.append((now, weight))
        self.used += weight
        return self.meter.note(self.used)

    def retry_after(self, now):
        """Seconds until the oldest event leaves the window."""
        return max(1, round(self.per_s - (now - self.events[0][0]) + 0.5)) if self.events else 1


class Credits:
    """A pool refilled at a constant rate; a call that finds too little is refused and takes nothing."""

    def __init__(self, meter, refill_per_s):
        self.meter = meter
        self.refill_per_s = refill_per_s
        self.left = meter.limit
        self.updated = None

    def spend(self, now, cost):
        if self.updated is not None:
            self.left = min(self.meter.limit, self.left + (now - self.updated) * self.refill_per_s)
        self.updated = now
        if not self.meter.note(self.meter.limit - self.left + cost):
            return False
        self.left -= cost
        return True


class Gauge:
    """A number of things open at once; whoever opens and closes them moves `open`."""

    def __init__(self, meter):
        self.meter = meter
        self.open = 0

    def room(self):
        """Note one more. Returns whether the limit has room for it."""
        return self.meter.note(self.open + 1)


class Ban:
    """An address shut out until a time. A venue that sees it try again may prolong it."""

    def __init__(self):
        self.until = 0.0
        self.count = 0
        self.attempts_inside = 0

    def start(self, now, seconds):
        self.until = max(self.until, now + seconds)
        self.count += 1

    def holds(self, now):
        if now < self.until:
            self.attempts_inside += 1
            return True
        return False

    def retry_after(self, now):
        return max(1, round(self.until - now + 0.5))
