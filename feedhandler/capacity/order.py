"""From one placement to the next: moves in an order in which no state between them breaks a venue's limit. Pure.

A move is make-before-break: its streams are subscribed on their targets, then let go on their sources, so for a moment
both count. Where that has no room, a stream goes through a temporary connection; where the address may not open one
either, it is dropped first and added when there is room: a hole in its data, which the reason names.
"""
import collections
import typing

from feedhandler.capacity.limits import Fill, NoLoad, item_of

DROP, MOVE, ADD = "drop", "move", "add"


class Move(typing.NamedTuple):
    """One step. streams: (key, id of the connection it leaves or 0, id of the one it joins or 0); a move of an
    instrument between workers holds all its streams. A connection is opened by its first stream and closed after its last."""
    kind: str
    streams: tuple
    worker_from: int | None
    worker_to: int | None
    reason: str


class _Group:
    """Streams that go together. One dropped to make room waits with no source; one that took a detour takes no other."""
    __slots__ = ("items", "sources", "targets", "reason", "detoured")

    def __init__(self, items, sources, targets, reason):
        self.items, self.sources, self.targets, self.reason, self.detoured = items, sources, targets, reason, False


def moves(before, fills, items, rules, addresses, why, load=NoLoad, otherwise=""):
    """The moves from placement `before` to connections `fills` (limits.Fill); items is {key: Item} of all on them,
    addresses that of limits.addresses(), why {unit or key: reason}, otherwise the reason of those it does not name."""
    if not before.connections:
        return [Move(ADD, tuple([(key, 0, fill.id) for key in fill.items]), None, fill.worker, "new") for fill in fills]
    target = {key: fill for fill in fills for key in fill.items}
    was = {stream.key: connection.id for connection in before.connections for stream in connection.streams}
    if len(was) == len(target) and all(key in target and target[key].id == id for key, id in was.items()):
        return []
    world = _World(before, items, rules, addresses, load)
    found = list(world.drops(target))
    pending, fresh = collections.OrderedDict(), {}
    for key, fill in target.items():
        source = world.home.get(key)
        if source is None:
            fresh.setdefault(fill.id, []).append(key)
        elif source.id != fill.id:
            group = items[key].unit if source.worker != fill.worker else key
            pending.setdefault(group, []).append(key)
    groups = [_Group([items[key] for key in keys], [world.home[key] for key in keys], [target[key] for key in keys],
                     why.get(group) or why.get(items[keys[0]].unit) or why.get(keys[0]) or otherwise) for group, keys in pending.items()]
    found += world.ordered(groups, max([fill.id for fill in fills] + [connection.id for connection in before.connections], default=0))
    by_id = {fill.id: fill for fill in fills}
    found += [Move(ADD, tuple((key, 0, id) for key in keys), None, by_id[id].worker, "new") for id, keys in fresh.items()]
    return found


class _World:
    """What is subscribed at one moment."""

    def __init__(self, before, items, rules, addresses, load):
        self.addresses, self.live, self.home, self.gone = addresses, {}, {}, []
        self.freed = set()       # addresses and ids of connections that something left since the groups waiting were last tried
        self.open, self.streams = collections.Counter(), collections.Counter()
        for connection in before.connections:
            place = connection.venue, connection.endpoint, connection.line
            if place[:2] not in rules or not connection.streams:
                self.gone += [(connection, stream.key) for stream in connection.streams]
                continue
            fill = self.live[connection.id] = Fill(connection.id, connection.worker, place, rules[place[:2]])
            address = addresses[place]
            self.open[address] += 1
            for stream in connection.streams:
                key = stream.key
                fill.add(items.get(key) or item_of(stream, rules[place[:2]], load))
                self.home[key] = fill
                self.streams[address] += 1

    def drops(self, target):
        """Let go of what is wanted no more: it only makes room."""
        by_connection = {}
        for connection, key in self.gone:
            by_connection.setdefault((connection.id, connection.worker), []).append(key)
        for key, fill in list(self.home.items()):
            if key not in target:
                by_connection.setdefault((fill.id, fill.worker), []).append(key)
                self.leave(fill.items[key], fill)
                del self.home[key]
        for (id, worker), keys in by_connection.items():
            yield Move(DROP, tuple((key, id, 0) for key in keys), worker, None, "no longer wanted")

    def leave(self, item, fill):
        fill.remove(item)
        address = self.addresses[fill.place]
        self.freed.add(fill.id)
        self.streams[address] -= 1
        if address.streams is not None:
            self.freed.add(address)
        if not fill.items:
            self.freed.add(address)
            self.open[address] -= 1
            del self.live[fill.id]

    def make(self, group):
        """Subscribe a group on its targets; whether every limit allowed it. If not, nothing was done."""
        made = []
        for item, target in zip(group.items, group.targets):
            if not self.join(item, target):
                for item, fill in made:
                    self.leave(item, fill)
                return False
            made.append((item, self.live[target.id]))
        return True

    def join(self, item, target):
        address = self.addresses[target.place]
        if address.streams is not None and self.streams[address] >= address.streams:
            return False
        fill = self.live.get(target.id)
        if fill is None:
            if address.connections is not None and self.open[address] >= address.connections:
                return False
            fill = self.live[target.id] = Fill(target.id, target.worker, target.place, target.rules)
            self.open[address] += 1
        elif not fill.takes(item):
            return False
        fill.add(item)
        self.streams[address] += 1
        return True

    def ordered(self, groups, id_max):
        """Moves of all groups, each when there is room; made for one where there is none. Each round moves a group, or
        detours or drops one that never was, so it ends after three rounds a group."""
        found, self.id_max, freed = [], id_max, None
        while groups:
            waiting = []
            for group in groups:
                if (freed is None or self.may_have_room(group, freed)) and self.make(group):
                    found.append(self.done(group))
                else:
                    waiting.append(group)
            if len(waiting) == len(groups):
                found.append(self.make_room(waiting))
            groups, freed, self.freed = waiting, self.freed, set()
        return found

    def may_have_room(self, group, freed):
        """Whether something left a target of the group, or its address, since it was last tried."""
        return any(target.id in freed or target.id in self.freed or self.addresses[target.place] in freed or self.addresses[target.place] in self.freed
                   for target in group.targets)

    def done(self, group):
        """Break after make."""
        kind = MOVE if group.sources else ADD
        streams = tuple((item.key, source.id if source else 0, target.id)
                        for item, source, target in zip(group.items, group.sources or [None] * len(group.items), group.targets))
        for item, source in zip(group.items, group.sources):
            self.leave(item, self.live[source.id])
        return Move(kind, streams, group.sources[0].worker if group.sources else None, group.targets[0].worker, group.reason)

    def make_room(self, groups):
        """Free a place: by way of a temporary connection if the address may open one, else with a hole in the data."""
        moving = [group for group in groups if group.sources]
        for group in moving:
            if group.detoured:
                continue
            places = {target.place: target for target in group.targets}
            ways = {place: Fill(self.id_max + index + 1, target.worker, place, target.rules) for index, (place, target) in enumerate(places.items())}
            detour = _Group(group.items, group.sources, [ways[target.place] for target in group.targets],
                            f"{group.reason}; through a temporary connection, all others are full")
            if self.make(detour):
                self.id_max += len(ways)
                step = self.done(detour)
                group.sources, group.detoured = detour.targets, True
                return step
        group = moving[0]
        step = Move(DROP, tuple((item.key, source.id, 0) for item, source in zip(group.items, group.sources)), group.sources[0].worker, None,
                    f"{group.reason}; dropped until there is room: the address has none for both")
        for item, source in zip(group.items, group.sources):
            self.leave(item, self.live[source.id])
        group.sources = []
        return step
