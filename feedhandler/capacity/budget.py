"""Budgets over time: what may be spent when, never above 80 % of a documented limit. Pure; the clock is passed in.

All times are nanoseconds of one clock that does not run backwards over the life of a budget. dump() and load() carry a
budget over a restart; whoever stores it converts between clocks.
"""
import collections
import math

from feedhandler.capacity.profile import USE_PERCENT

SECOND = 1_000_000_000
SPENT_MAX = 100_000  # entries of one window; the largest documented limit of this kind is 6,000 a minute


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
        for at_ns, level in entries:
            self.at_ns, self.level = min(at_ns, now_ns), min(self.limit, level)


class Budget:
    """All that one address may spend on one thing: its windows together, and a ban while the venue punishes us."""

    def __init__(self, windows=(), credits=None):
        self.parts = [Rolling(window.n, window.per_s) for window in windows] + ([credits] if credits else [])
        self.banned_ns, self.reason = 0, ""

    def take(self, now_ns, want, least=1):
        """Spend up to `want` now and answer how much: 0 inside a ban or when fewer than `least` are left.

        A single `least` above the whole limit would wait for ever: it goes when everything is unspent."""
        if now_ns < self.banned_ns:
            return 0
        room = min((part.room(now_ns) for part in self.parts), default=want)
        if room < least and not (least > self.limit and room == self.limit):
            return 0
        granted = max(least, min(want, room))
        for part in self.parts:
            part.spend(now_ns, granted)
        return granted

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

    def used(self, now_ns):
        """(spent, allowed) of the part with the least room; (0, 0) without limits."""
        tight = min(self.parts, key=lambda part: part.room(now_ns) / part.limit, default=None)
        return (0, 0) if tight is None else (tight.limit - tight.room(now_ns), tight.limit)

    def dump(self):
        return {"parts": [part.dump() for part in self.parts], "banned_ns": self.banned_ns, "reason": self.reason}

    def load(self, document, now_ns):
        """What dump() gave. A window that has no counterpart any more (a changed limit) is spent in all of them."""
        saved = document["parts"]
        for index, part in enumerate(self.parts):
            entries = saved[index] if index < len(saved) else saved[-1] if saved else []
            part.load(entries, now_ns)
        self.banned_ns, self.reason = document["banned_ns"], document["reason"]
