"""What one connection may carry, and how much of it streams take. Pure; shared by the plan and the order of its moves.

A Rules is one profile's limits of a connection, ready to be asked 50,000 times. An Item is one stream with what it takes.
A Fill is one connection's use: takes() answers whether a hard limit allows one stream more. An Address is what all
connections of an endpoint may be and carry together. All figures are integers, so that a sum does not depend on the
order in which it was made: rates in thousandths of a message a second, CPU in nanoseconds a second.
"""
import dataclasses
import fnmatch
import re

from feedhandler.capacity.profile import channel_of

MILLI = 1000
LINE_B, STANDBY = 1, 2   # lines beside the first; a standby's is another worker's, never the owner's
RESERVE = 1   # connections of an address left free by choice where a venue cuts them by age: one rollover at a time opens its new one first


class NoLoad:
    """Every stream weighs the same and nothing was measured."""

    @staticmethod
    def of(stream):
        return None


class Item:
    """One stream to place and what it takes of its connection and its worker."""
    __slots__ = ("stream", "key", "unit", "place", "weight", "chars", "kinds", "tokens", "enemies", "rate", "cpu", "growth", "known")


class Rules:
    """The limits of one connection under a profile."""

    def __init__(self, profile):
        self.profile = profile
        self.places = {}         # one tuple for all streams of a place: they are compared and hashed often
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
    __slots__ = ("id", "worker", "rules", "place", "items", "weight", "chars", "kinds", "tokens", "rate", "apart", "target")

    def __init__(self, id, worker, place, rules, target=0):
        self.id, self.worker, self.place, self.rules = id, worker, place, rules   # place: (venue, endpoint, line)
        self.items = {}          # key → Item
        self.weight = self.chars = self.rate = 0
        self.kinds = [0] * len(rules.most)
        self.tokens = {}
        self.apart = False       # kept for one heavy stream
        self.target = target     # rate it is to stay below

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

    def refusal(self, item):
        """Which limit does not allow what takes() refuses, in words."""
        rules = self.rules
        if rules.fill is not None and self.weight + item.weight > rules.fill:
            return f"holds {self.weight} streams, with it they are more than {rules.fill}"
        if rules.chars is not None and self.chars + item.chars > rules.chars:
            return f"holds {self.chars} characters, with its {item.chars} they are more than {rules.chars}"
        for kind in item.kinds:
            if self.kinds[kind] >= rules.most[kind]:
                return f"holds {self.kinds[kind]} streams of {rules.profile.soft_by_channel[kind][0]}, which are all it may"
        return f"holds one of {item.stream.symbol} that excludes it"

    def add(self, item):
        self.items[item.key] = item
        self.weight += item.weight
        self.chars += item.chars
        self.rate += item.rate
        if self.rules.plain:
            return
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


def place_of(stream):
    """(venue, endpoint, line) of the connections a stream may be on. A worker's own first lines and what it holds for others
    share them: a standby that takes over stays where it is."""
    return stream.venue, stream.endpoint, 0 if stream.line == STANDBY else stream.line


def item_of(stream, rules, load):
    """One stream with all it takes."""
    item = Item()
    item.stream = stream
    item.key = (stream.venue, stream.endpoint, stream.wire, stream.line)
    place = place_of(stream)
    item.place = rules.places.setdefault(place, place)
    item.unit = ~stream.instrument if stream.line == STANDBY else stream.instrument
    found = load.of(stream)
    if found is None:
        item.rate, item.cpu, item.growth, item.known = 0, MILLI, 0, False
    else:
        rate = found.messages_per_s
        item.rate, item.cpu = int(rate * MILLI), int(rate * found.cpu_ns) + 1
        item.known = found.seconds > 0
        item.growth = int(found.growth * MILLI * MILLI) if item.known else 0
    rules.fit(item, stream.wire, stream.symbol)
    return item


class Address:
    """What the connections of one endpoint from one address of ours may be and carry together, beside what others hold
    of it; None: unlimited."""
    __slots__ = ("name", "connections", "comfort", "streams", "others")

    def __init__(self, name, profile):
        self.name, self.others = name, (profile.held_open, profile.held_streams)   # what other instances hold
        self.connections, self.streams = profile.connections_usable, profile.streams_usable
        self.comfort = self.connections       # connections that a plan opens without need
        if profile.lifetime_s is not None and self.connections is not None and self.connections > RESERVE:
            self.comfort -= RESERVE


def addresses(profiles, settings):
    """{(venue, endpoint, line): Address}; all lines share one, unless line B leaves from a source of its own."""
    found = {}
    for (venue, endpoint), profile in profiles.items():
        first = second = Address(f"{venue}/{endpoint}", profile)
        if venue in settings.sources_b:
            second = Address(f"{venue}/{endpoint} line B", dataclasses.replace(profile, held_open=0, held_streams=0))
        found.update({(venue, endpoint, 0): first, (venue, endpoint, LINE_B): second})
    return found


def rate_limit(profile, settings, connection=0):
    """Learned limit of a connection, in thousandths of a message a second; of a new one without its id."""
    least = min(settings.messages_per_s, profile.messages_per_s or settings.messages_per_s)
    return int(min(least, settings.limits.get(connection, least)) * MILLI)
