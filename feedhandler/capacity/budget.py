"""Budgets over time: what may be spent when, never above 80 % of a documented limit. Pure; the clock is passed in.

All times are nanoseconds of one clock that does not run backwards over the life of a budget. dump() and load() carry a
budget over a restart; whoever stores it converts between clocks.
"""
import collections
import math

from feedhandler.capacity.profile import USE_PERCENT

SECOND = 1_000_000_000
SPENT_MAX = 100_000  # entries of one window; the largest documented limit of this kind is 6,000 a minute
PUNISHED_MAX_NS = 3600 * SECOND   # a punishment that names no end is taken for this long at most, however often it comes
FORGIVE_NS = 3600 * SECOND        # so long after the last one it is taken as the first again


class Rolling:
    """Strict rolling window: in no interval of per_ns, wherever it begins, is more than limit spent."""

    def __init__(self, n, per_s):
        self.n = n
        self.limit = max(1, min(n * USE_PERCENT // 100, SPENT_MAX))
        self.per_ns = math.ceil(per_s * SECOND)
        self.spent = collections.deque()  # (time, amount), oldest first
        self.used = 0

    def _expire(self, now_ns):
        while self.spent and self.spent[0][0] + self.per_ns <= now_ns:
            self.used -= self.spent.popleft()[1]

    def room(self, now_ns):
        """What may be spent now."""
        self._expire(now_ns)
        return max(0, self.limit - self.used)

    def spend(self, now_ns, amount):
        last = self.spent[-1][0] if self.spent else now_ns
        self.spent.append((max(now_ns, last), amount))
        self.used += amount

    def renew(self, now_ns):
        """What was granted once reached the venue only now: the oldest entry counts from here."""
        self._expire(now_ns)
        if self.spent and self.spent[0][0] < now_ns:     # one that was renewed just now is another one
            at_ns, amount = self.spent.popleft()
            self.used -= 1
            if amount > 1:
                self.spent.appendleft((at_ns, amount - 1))
        self.spend(now_ns, 1)

    def ready_ns(self, now_ns, amount):
        """When `amount` may be spent. More than the whole limit goes when the window is empty."""
        self._expire(now_ns)
        missing = min(amount, self.limit) - (self.limit - self.used)
        for at_ns, spent in self.spent:
            if missing <= 0:
                break
            missing -= spent
            now_ns = at_ns + self.per_ns
        return now_ns

    def dump(self):
        return [list(entry) for entry in self.spent]

    def load(self, entries, now_ns):
        """Entries dump() gave. One from the future is taken as spent now: a clock that jumped back costs time, never a ban."""
        for at_ns, amount in sorted(entries):
            self.spend(min(at_ns, now_ns), amount)


class Credits:
    """Token bucket in the venue's own units: `pool` at most, refilled with time; both kept to 80 %."""

    def __init__(self, pool, refill_per_s):
        self.limit = max(1, pool * USE_PERCENT // 100)
        self.refill_per_ns = refill_per_s * USE_PERCENT / 100 / SECOND
        self.level, self.at_ns = float(self.limit), None

    def renew(self, now_ns):
        """A pool does not mind when."""

    def room(self, now_ns):
        if self.at_ns is not None and now_ns > self.at_ns:
            self.level = min(self.limit, self.level + (now_ns - self.at_ns) * self.refill_per_ns)
        self.at_ns = now_ns if self.at_ns is None else max(now_ns, self.at_ns)
        return int(self.level)

    def spend(self, now_ns, amount):
        self.room(now_ns)
        self.level -= amount

    def ready_ns(self, now_ns, amount):
        missing = min(amount, self.limit) - self.room(now_ns)
        return now_ns if missing <= 0 else now_ns + math.ceil((missing + 1) / self.refill_per_ns)

    def dump(self):
        return [[self.at_ns or 0, self.level]]

    def load(self, entries, now_ns):
        """A level of the future is of now: a clock that jumped back costs time, never credits that are not there."""
        for at_ns, level in entries:
            self.at_ns, self.level = min(at_ns, now_ns), min(self.limit, level)


class Budget:
    """All that one address may spend on one thing: its windows together, and a ban while the venue punishes us."""

    def __init__(self, windows=(), credits=None):
        self.parts = [Rolling(window.n, window.per_s) for window in windows] + ([credits] if credits else [])
        self.banned_ns, self.reason = 0, ""
        self.punished = 0     # how often without an end named

    def take(self, now_ns, want, least=1):
        """Spend up to `want` now and answer how much: 0 inside a ban or when fewer than `least` are left.

        A single `least` above the whole limit would wait for ever: it goes when everything is unspent."""
        if now_ns < self.banned_ns:
            return 0
        room = self.room(now_ns)
        if room < least and not (least > self.limit and room == self.limit):
            return 0
        granted = max(least, min(want, room))
        for part in self.parts:
            part.spend(now_ns, granted)
        return granted

    def room(self, now_ns):
        """What every part has left."""
        return min((part.room(now_ns) for part in self.parts), default=math.inf)

    def renew(self, now_ns):
        """Count one that was granted earlier from now on."""
        for part in self.parts:
            part.renew(now_ns)

    @property
    def limit(self):
        return min((part.limit for part in self.parts), default=math.inf)

    def ready_ns(self, now_ns, amount=1):
        """When take() of this amount can succeed."""
        return max([now_ns, self.banned_ns] + [part.ready_ns(now_ns, amount) for part in self.parts])

    def ban(self, until_ns, reason):
        """Nothing is spent before until_ns. A later ban never shortens an earlier one."""
        if until_ns > self.banned_ns:
            self.banned_ns, self.reason = until_ns, reason

    def punish(self, now_ns, first_ns, reason):
        """A ban whose end the venue did not name: first_ns, and twice as long each time it comes again.

        Within a running ban it is the same event, heard of on another connection."""
        if now_ns < self.banned_ns:
            return
        if now_ns >= self.banned_ns + FORGIVE_NS:
            self.punished = 0
        self.ban(now_ns + max(first_ns, min(first_ns << self.punished, PUNISHED_MAX_NS)), reason)
        self.punished = min(self.punished + 1, 40)

    def used(self, now_ns):
        """(spent, allowed) of the part with the least room; (0, 0) without limits."""
        tight = min(self.parts, key=lambda part: part.room(now_ns) / part.limit, default=None)
        return (0, 0) if tight is None else (tight.limit - tight.room(now_ns), tight.limit)

    def dump(self):
        return {"parts": [part.dump() for part in self.parts], "banned_ns": self.banned_ns, "reason": self.reason, "punished": self.punished}

    def load(self, document, now_ns):
        """What dump() gave. A window that has no counterpart any more (a changed limit) is spent in all of them."""
        saved = document["parts"]
        for index, part in enumerate(self.parts):
            entries = saved[index] if index < len(saved) else saved[-1] if saved else []
            part.load(entries, now_ns)
        self.banned_ns, self.reason, self.punished = document["banned_ns"], document["reason"], document["punished"]
