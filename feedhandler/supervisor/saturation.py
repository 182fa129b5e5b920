"""What to do where connections are throttled or workers fall behind: limits for the plan, remedies in words, what to shed. Pure.

A connection that was throttled is taken to carry no more than it did at that moment: the plan keeps it to its target of that
(Settings.limits), which splits it. Where no move helps, streams are shed by their configured priority, lowest first; one of
PRIORITY_KEEP never is. The clock is passed in, in seconds.
"""
import dataclasses

LIMIT_S = 6 * 3600.0        # what a connection was limited to counts so long after it was seen last
SETTLE_S = 2.0              # from the first alarm to a remedy: others may follow
PAUSE_S = 30.0              # between two remedies: loads are learned anew
SHED_AFTER_S = 30.0         # a connection is throttled for so long before anything of it is shed
SHED_PART = 4               # of a worker that falls behind, one in so many of its messages
PRIORITY_KEEP = 9


@dataclasses.dataclass(slots=True)
class Found:
    """A connection that was found throttled. messages_per_s: what it carried then; ended_s: None while it lasts."""
    reason: str
    messages_per_s: float
    since_s: float
    ended_s: float | None = None


@dataclasses.dataclass(slots=True, frozen=True)
class Remedy:
    """kind: split, move, shed, none. where: "connection 3" or "worker 1"; sentence says all of it; keys: of the streams shed."""
    kind: str
    where: str
    sentence: str
    keys: tuple = ()


class Saturation:
    """What was found too much, and when a remedy is due."""

    def __init__(self):
        self.found = {}          # connection id → Found
        self.behind = {}         # worker → (reason, since when)
        self.applied_s = None    # when a remedy was last applied

    def connection(self, now_s, id, health, reason, messages_per_s):
        """How a connection is, as often as it is told. Returns whether it is throttled since now."""
        found = self.found.get(id)
        if health != "THROTTLED":
            if found is not None and found.ended_s is None:
                found.ended_s = now_s
            return False
        if found is not None and found.ended_s is None:
            return False
        self.found[id] = Found(reason, max(1.0, messages_per_s), now_s)
        return True

    def worker(self, now_s, number, reason):
        """Why a worker falls behind, or ""; returns whether it does since now."""
        if not reason:
            self.behind.pop(number, None)
            return False
        begun = number not in self.behind
        self.behind.setdefault(number, (reason, now_s))
        return begun

    def keep(self, now_s, connections):
        """Forget connections that are no more, and limits that are old."""
        self.found = {id: found for id, found in self.found.items()
                      if id in connections and (found.ended_s is None or now_s - found.ended_s < LIMIT_S)}

    def limits(self):
        """{connection id: messages a second it was found limited to}."""
        return {id: found.messages_per_s for id, found in self.found.items()}

    def saved(self, now_s):
        """What connections were found limited to, as plain data: it counts for hours."""
        return [[id, found.reason, found.messages_per_s, now_s - found.since_s, None if found.ended_s is None else now_s - found.ended_s]
                for id, found in self.found.items()]

    def restore(self, rows, now_s):
        """What saved() gave, at this moment; what lasts its worker tells again. ValueError where it is damaged."""
        try:
            self.found = {int(id): Found(reason, float(messages_per_s), now_s - since_s, now_s - (ended_s or 0.0))
                          for id, reason, messages_per_s, since_s, ended_s in rows}
        except (TypeError, ValueError) as error:
            raise ValueError(f"what connections are limited to is damaged: {error!r}") from None

    def throttled(self):
        """Ids of the connections that are at this moment: what they bring is no measure of their streams."""
        return {id for id, found in self.found.items() if found.ended_s is None}

    def is_due(self, now_s):
        """Whether a remedy is to be applied now."""
        if self.applied_s is not None and now_s - self.applied_s < PAUSE_S:
            return False
        begun = [found.since_s for found in self.found.values() if found.ended_s is None] + [since for _, since in self.behind.values()]
        return bool(begun) and now_s - min(begun) >= SETTLE_S

    def remedies(self, now_s, plan, placement, loads, priorities, target_percent):
        """[Remedy] for all that is wrong at this moment. plan: the Plan that improves on placement with limits() set; priorities: {key: 0..9}."""
        found = []
        for connection in placement.connections:
            trouble = self.found.get(connection.id)
            if trouble is not None and trouble.ended_s is None:
                found.append(_of_connection(now_s, connection, trouble, plan, loads, priorities, target_percent))
        for number, (reason, since_s) in sorted(self.behind.items()):
            streams = [stream for connection in placement.connections if connection.worker == number for stream in connection.streams]
            found.append(_of_worker(now_s, number, reason, since_s, streams, plan, loads, priorities))
        return found


def _of_connection(now_s, connection, trouble, plan, loads, priorities, target_percent):
    where = f"connection {connection.id}"
    what = f"{where} of {connection.venue}/{connection.endpoint}"
    moved = {key for move in plan.moves for key, source, target in move.streams if source == connection.id and target != source}
    if moved:
        return Remedy("split", where, f"split {what}: {len(moved)} of its {_streams(len(connection.streams))} go elsewhere; {trouble.reason}")
    over = sum(loads.of(stream).messages_per_s for stream in connection.streams) - trouble.messages_per_s * target_percent / 100
    why = "one stream alone brings it" if len(connection.streams) == 1 else "the address may open no more connections"
    return _shed_or_none(now_s, trouble.since_s, where, what, connection.streams, over, loads, priorities, trouble.reason, why)


def _of_worker(now_s, number, reason, since_s, streams, plan, loads, priorities):
    where = f"worker {number}"
    moved = [move for move in plan.moves if move.worker_from == number and move.worker_to != number]
    if moved:
        return Remedy("move", where, f"move {len(moved)} instrument{'s' * (len(moved) != 1)} off {where}: it falls behind, {reason}")
    over = sum(loads.of(stream).messages_per_s for stream in streams) / SHED_PART
    return _shed_or_none(now_s, since_s, where, where, streams, over, loads, priorities, reason, "no other worker has room; raise instance.workers")


def _shed_or_none(now_s, since_s, where, what, streams, over, loads, priorities, reason, why):
    keys = to_shed(streams, over, loads, priorities)
    if not keys:
        return Remedy("none", where, f"nothing helps {what}: {why}, and no stream of it has a priority below {PRIORITY_KEEP} to be shed by; {reason}")
    most = max(priorities[key] for key in keys)
    wait_s = SHED_AFTER_S - (now_s - since_s)
    when = f" in {wait_s:.0f} s if it lasts" if wait_s > 0 else ""
    return Remedy("shed", where, f"shed {_streams(len(keys))} of {what}, of priority {most} and lower{when}: {why}; {reason}",
                  keys if wait_s <= 0 else ())


def to_shed(streams, over, loads, priorities):
    """Keys of the streams to let go until `over` messages a second less come: lowest priority first, then the heaviest.
    The last stream of all stays."""
    ranked = sorted((stream for stream in streams if priorities.get(stream.key, PRIORITY_KEEP) < PRIORITY_KEEP),
                    key=lambda stream: (priorities[stream.key], -loads.of(stream).messages_per_s, stream.key))
    keys = []
    for stream in ranked:
        if over <= 0 or len(keys) + 1 == len(streams):
            break
        keys.append(stream.key)
        over -= loads.of(stream).messages_per_s
    return tuple(keys)


def _streams(count):
    return f"{count} stream{'s' * (count != 1)}"
