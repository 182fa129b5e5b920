"""How fast one connection may talk: message windows, credits, connection permits and backoff. Pure, clock passed in.

A venue's documented windows are kept to 80 %, as strict rolling windows: at no moment do more than that many
counted messages lie within the last `per_s` seconds. All times are nanoseconds of one monotonic clock.
"""
import collections

SECOND = 1_000_000_000
USE_PERCENT = 80                  # of any documented limit
JITTER_NS = 100_000_000           # messages sent a window apart may arrive this much closer together
BACKOFF_FIRST_NS = 50_000_000     # the first retry comes within 50 ms
BACKOFF_MAX_NS = 30 * SECOND
PUNISHED_FIRST_NS = 5 * SECOND
PUNISHED_MAX_NS = 120 * SECOND    # the longest penalty recorded is about two minutes
PERMIT_MAX = 64                   # spare permits kept an endpoint

OPERATION, TEXT, CONTROL = "operation", "text", "control"
"""Kinds of client message: subscribe or unsubscribe; any other text; a ping or pong frame."""


class Window:
    """At most `limit` messages in any `per_ns`; `reserve` of them are not for operations."""

    def __init__(self, n, per_s, kinds, reserve):
        self.limit = max(1, n * USE_PERCENT // 100)
        self.per_ns = int(per_s * SECOND) + JITTER_NS
        self.kinds = kinds
        self.reserve = min(reserve, self.limit - 1)
        self.sent = collections.deque(maxlen=self.limit)

    def ready_ns(self, now, kind):
        cap = self.limit - (self.reserve if kind == OPERATION else 0)
        if kind not in self.kinds or len(self.sent) < cap:
            return now
        return max(now, self.sent[-cap] + self.per_ns)

    def spend(self, now, kind):
        if kind in self.kinds:
            self.sent.append(now)


class Credits:
    """A token bucket in the venue's own units, also kept to 80 %: `cost` an operation, refilled with time."""

    def __init__(self, cost, pool, refill_per_s):
        self.cost = cost
        self.pool = max(cost, pool * USE_PERCENT / 100)
        self.refill_per_ns = refill_per_s * USE_PERCENT / 100 / SECOND
        self.level = self.pool
        self.at = 0

    def _level(self, now):
        return min(self.pool, self.level + max(0, now - self.at) * self.refill_per_ns)

    def ready_ns(self, now, kind):
        missing = self.cost - self._level(now)
        if kind != OPERATION or missing <= 0:
            return now
        return now + int(missing / self.refill_per_ns) + 1

    def spend(self, now, kind):
        if kind == OPERATION:
            self.level, self.at = self._level(now) - self.cost, now


class Pacer:
    """When the next client message of a kind may go out on one connection, by its capacity profile."""

    def __init__(self, client_msg):
        kinds = {OPERATION} if client_msg.get("counts_ops") == "sub_unsub_login" else {OPERATION, TEXT}
        control = bool(client_msg.get("counts_control_frames"))
        if control:
            kinds = kinds | {CONTROL}
        self.budgets = [Window(window["n"], window["per_s"], kinds, 1 if control or TEXT in kinds else 0)
                        for window in client_msg.get("windows") or ()]
        if client_msg.get("credits"):
            credits = client_msg["credits"]
            self.budgets.append(Credits(credits["cost"], credits["pool"], credits["refill_per_s"]))
        counted = [*(client_msg.get("windows") or ()), client_msg.get("credits") or {}]
        self.shared = any(row.get("scope", "conn") != "conn" for row in counted)   # operations need a permit of the address's budget too
        self.pace_ns = int((client_msg.get("pace_ms") or 0) * 1_000_000)
        self.next_ns = 0          # spacing of operations
        self.blocked_ns = 0       # no operation before this: the venue complained

    def ready_ns(self, now, kind):
        """The earliest moment, not before now, at which one message of this kind is within every budget."""
        ready = max([now] + [budget.ready_ns(now, kind) for budget in self.budgets])
        return max(ready, self.next_ns, self.blocked_ns) if kind == OPERATION else ready

    def spend(self, now, kind):
        for budget in self.budgets:
            budget.spend(now, kind)
        if kind != CONTROL:
            self.next_ns = now + self.pace_ns

    def block(self, until):
        self.blocked_ns = max(self.blocked_ns, until)


class Backoff:
    """Exponential, full jitter. Told of a punishment it waits longer, and never less than the venue asked for."""

    def __init__(self, rng):
        self.rng = rng
        self.attempts = 0
        self.punished = 0

    def delay_ns(self, punished=False, retry_s=0.0):
        span = min(BACKOFF_MAX_NS, BACKOFF_FIRST_NS << min(self.attempts, 20))
        self.attempts += 1
        floor = int(retry_s * SECOND)
        if punished:
            floor = max(floor, min(PUNISHED_MAX_NS, PUNISHED_FIRST_NS << min(self.punished, 10)))
            self.punished += 1
        return floor + int(self.rng.random() * span)

    def reset(self):
        self.attempts = self.punished = 0


class PermitPool:
    """What the supervisor granted and was not used yet."""

    def __init__(self):
        self.grants = collections.deque()   # [count, valid_until_ns], soonest end first

    def add(self, count, valid_until_ns):
        self.grants.append([min(count, PERMIT_MAX), valid_until_ns])
        self.grants = collections.deque(sorted(self.grants, key=lambda grant: grant[1])[:PERMIT_MAX])

    def take(self, now):
        """One attempt, if there is a valid one."""
        while self.grants and (self.grants[0][1] <= now or self.grants[0][0] <= 0):
            self.grants.popleft()
        if not self.grants:
            return False
        self.grants[0][0] -= 1
        return True
