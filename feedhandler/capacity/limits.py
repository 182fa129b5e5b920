"""What one connection may carry, and how much of it streams take. Pure; shared by the plan and the order of its moves.

A Rules is one profile's limits of a connection, ready to be asked 50,000 times. An Item is one stream with what it takes.
A Fill is one connection's use: takes() answers whether a hard limit allows one stream more. All figures are integers,
so that a sum does not depend on the order in which it was made: rates in thousandths of a message or byte a second,
CPU in nanoseconds a second.
"""
import fnmatch
import re

from feedhandler.capacity.profile import channel_of

MILLI = 1000
STANDBY = 2   # the line of a standby's streams: another worker's, never the owner's


class NoLoad:
    """Every stream weighs the same and nothing was measured."""

    @staticmethod
    def of(stream):
        return None


class Item:
    """One stream to place and what it takes of its connection and its worker."""
    __slots__ = ("stream", "key", "unit", "place", "weight", "chars", "kinds", "tokens", "enemies", "rate", "bytes", "cpu", "growth", "known")


class Rules:
    """The limits of one connection under a profile."""

    def __init__(self, profile):
        self.profile = profile
        self.fill, self.chars = profile.fill, profile.max_args_chars_per_conn
        self.weights = [(_matcher(glob), weight) for glob, weight in profile.weight_by_channel]
        self.softs = [(_matcher(glob), most) for glob, most in profile.soft_by_channel]
        self.pairs = [(_matcher(first), _matcher(second)) for first, second in profile.exclusive]
        self.most = tuple(most for _, most in self.softs)
        self.plain = not (self.weights or self.softs or self.pairs)
        self.free = self.plain and self.chars is None and not profile.routing   # any stream fits alone

    def fit(self, item, wire, symbol):
        """Set what a stream takes."""
        item.chars = len(wire)
        item.weight, item.kinds, item.tokens, item.enemies = 1, (), (), ()
        if self.plain:
            return
        channel = channel_of(wire)
        item.weight = next((weight for named, weight in self.weights if named(channel)), 1)
        item.kinds = tuple(index for index, (named, _) in enumerate(self.softs) if named(channel))
        if self.pairs:
            sides = [(index, side) for index, pair in enumerate(self.pairs) for side in (0, 1) if pair[side](channel)]
            item.tokens = tuple((index, side, symbol) for index, side in sides)
            item.enemies = tuple((index, 1 - side, symbol) for index, side in sides)


def _matcher(glob):
    return re.compile(fnmatch.translate(glob)).match


class Fill:
    """One connection's use of its limits."""
    __slots__ = ("id", "worker", "rules", "place", "items", "weight", "chars", "kinds", "tokens", "rate", "apart")

    def __init__(self, id, worker, place, rules):
        self.id, self.worker, self.place, self.rules = id, worker, place, rules   # place: (venue, endpoint, line)
        self.items = {}          # key → Item
        self.weight = self.chars = self.rate = 0
        self.kinds = [0] * len(rules.most)
        self.tokens = {}
        self.apart = False       # kept for one heavy stream

    def takes(self, item):
        """Whether every hard limit allows this stream beside the others."""
        rules = self.rules
        if rules.fill is not None and self.weight + item.weight > rules.fill:
            return False
        if rules.chars is not None and self.chars + item.chars > rules.chars:
            return False
        if rules.plain:
            return True
        return (all(self.kinds[kind] < rules.most[kind] for kind in item.kinds)
                and not any(self.tokens.get(token) for token in item.enemies))

    def add(self, item):
        self.items[item.key] = item
        self.weight += item.weight
        self.chars += item.chars
        self.rate += item.rate
        for kind in item.kinds:
            self.kinds[kind] += 1
        for token in item.tokens:
            self.tokens[token] = self.tokens.get(token, 0) + 1

    def remove(self, item):
        del self.items[item.key]
        self.weight -= item.weight
        self.chars -= item.chars
        self.rate -= item.rate
        for kind in item.kinds:
            self.kinds[kind] -= 1
        for token in item.tokens:
            self.tokens[token] -= 1


def item_of(stream, rules, load):
    """One stream with all it takes."""
    item = Item()
    item.stream = stream
    line = stream.line
    item.key = (stream.venue, stream.endpoint, stream.wire, line)
    item.place = (stream.venue, stream.endpoint, line)
    item.unit = ~stream.instrument if line == STANDBY else stream.instrument
    found = load.of(stream)
    if found is None:
        item.rate, item.bytes, item.cpu, item.growth, item.known = 0, 0, MILLI, 0, False
    else:
        rate = found.messages_per_s
        item.rate, item.bytes, item.cpu = int(rate * MILLI), int(found.bytes_per_s * MILLI), int(rate * found.cpu_ns) + 1
        item.known = found.seconds > 0
        item.growth = int(found.growth * MILLI * MILLI) if item.known else 0
    rules.fit(item, stream.wire, stream.symbol)
    return item


def rate_limit(profile, settings):
    """Learned limit of one connection, in thousandths of a message a second."""
    return min(settings.messages_per_s, profile.messages_per_s or settings.messages_per_s) * MILLI
