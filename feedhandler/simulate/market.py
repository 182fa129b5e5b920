"""A seeded synthetic market: instruments whose books, trades and quotes agree with each other.

An instrument's life is a loop of events that ends where it began: the last event restores the first book. So
its frames can be prepared once and sent for ever, only with rising sequence numbers, and the book after any
position is known without keeping one. Prices and sizes are integers, mantissas with the instrument's digits.
"""
import bisect
import collections
import dataclasses
import functools
import random

BID, ASK = 0, 1
EVENTS_PER_LOOP = 256
EVENTS_PER_MARKET_MAX = 65_536   # 256 up to 256 instruments; about 50 MB of frames when all are subscribed
TEXTS_MAX = 131_072              # decimals remembered: preparing frames prints the same ones again and again
EVENTS_PER_LOOP_MIN = 64
LEVELS_DEFAULT = 40
SNAPSHOTS_MAX = 10_000           # REST books remembered of one instrument
LEVELS_MIN = 12                  # a side never gets thinner than this

BASES = (("BTC", 61800.0), ("ETH", 2680.0), ("SOL", 148.0), ("XRP", 0.58), ("BNB", 512.0), ("DOGE", 0.104),
         ("ADA", 0.342), ("AVAX", 22.4), ("LINK", 10.3), ("DOT", 4.51), ("LTC", 61.2), ("BCH", 322.0),
         ("UNI", 6.04), ("ATOM", 4.62), ("ETC", 18.3), ("FIL", 3.61), ("APT", 5.71), ("ARB", 0.533),
         ("OP", 1.41), ("NEAR", 3.87), ("INJ", 18.1), ("SUI", 0.94), ("TRX", 0.128), ("AAVE", 104.0),
         ("MKR", 1980.0), ("CRV", 0.271), ("ALGO", 0.119), ("XLM", 0.0982), ("SAND", 0.241), ("GALA", 0.0182))


@functools.lru_cache(maxsize=TEXTS_MAX)
def number_text(mantissa, digits):
    """The decimal with exactly `digits` digits behind the point."""
    if digits == 0:
        return str(mantissa)
    whole, part = divmod(mantissa, 10 ** digits)
    return f"{whole}.{part:0{digits}d}"


def base_price(index):
    """Name and price of the index-th coin; behind the known ones come numbered ones."""
    if index < len(BASES):
        return BASES[index]
    return f"C{index:04d}", BASES[index % len(BASES)][1]


def price_digits(price):
    """Digits that give a tick of about one in 20,000 to one in 200,000 of the price."""
    for digits, floor in ((1, 20_000), (2, 100), (3, 10), (4, 0.5), (5, 0.05)):
        if price >= floor:
            return digits
    return 6


@dataclasses.dataclass(slots=True, eq=False)
class Event:
    """What happens at once in one book: absolute levels, perhaps a trade, and the update ids it spends."""
    levels: tuple           # (side, price, size), size 0 deletes
    trade: tuple | None     # (price, size, side of the taker)
    first: int              # update ids, relative to the start of the loop
    last: int
    touch: tuple            # (bid price, bid size, ask price, ask size) after it
    touch_moved: bool
    trades_before: int      # trades of the loop before this event


@dataclasses.dataclass(eq=False)
class Instrument:
    """One instrument of one simulated venue: what the venue publishes of it, its loop, and where it is."""
    venue: str
    symbol: str
    base: str
    quote: str
    kind: str = "spot"
    price_digits: int = 2
    size_digits: int = 3
    price: float = 100.0
    price_zeros: int = 0    # zeros a venue prints behind the digits that count
    size_zeros: int = 0
    extra: dict = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        self.position = 0       # events published since the start
        self.streams = []       # subscribed streams that follow the book
        self.paused_until = 0.0
        self.snapshots = collections.deque(maxlen=SNAPSHOTS_MAX)     # REST snapshots served: (position, extra levels, last update id)

    def generate(self, seed, events, levels, contiguous):
        """Make the loop. contiguous: the first update id of an event follows the last of the one before."""
        generator = Generator(random.Random(f"{seed}:{self.venue}:{self.symbol}"), self, levels)
        self.initial = generator.copy()
        self.loop = generator.run(events, contiguous)
        self.span = self.loop[-1].last
        self.trades_per_loop = self.loop[-1].trades_before + (self.loop[-1].trade is not None)
        self.sequence_start = generator.random.randrange(10 ** 9, 10 ** 11)
        self.trade_start = generator.random.randrange(10 ** 6, 10 ** 9)

    def price_text(self, mantissa):
        return number_text(mantissa, self.price_digits) + ("0" * self.price_zeros if self.price_digits else "")

    def size_text(self, mantissa):
        return number_text(mantissa, self.size_digits) + ("0" * self.size_zeros if self.size_digits else "")

    def sequence(self, position):
        """The last update id once `position` events have been published."""
        cycle, index = divmod(position, len(self.loop))
        return self.sequence_start + cycle * self.span + (self.loop[index - 1].last if index else 0)

    def book(self, position):
        """(bids, asks) as {price: size} after `position` events: replayed from the start of the loop."""
        sides = (dict(self.initial[BID]), dict(self.initial[ASK]))
        for event in self.loop[:position % len(self.loop)]:
            apply(sides, event.levels)
        return sides

    def touch(self, position):
        return self.loop[position % len(self.loop) - 1].touch

    def best_first(self, position, depth=None):
        """(bids, asks) as lists of (price, size), best first, after `position` events."""
        bids, asks = self.book(position)
        return sorted(bids.items(), reverse=True)[:depth], sorted(asks.items())[:depth]


def apply(sides, levels):
    for side, price, size in levels:
        if size:
            sides[side][price] = size
        else:
            sides[side].pop(price, None)


class Generator:
    """Draws the events of one loop. Both sides keep LEVELS_MIN levels and never cross."""

    def __init__(self, rng, instrument, levels):
        self.random = rng
        self.lot = max(1, 10 ** instrument.size_digits // 1000)
        self.levels = levels
        mid = round(instrument.price * 10 ** instrument.price_digits)
        self.sides = ({}, {})
        self.prices = ([], [])     # ascending
        for side, direction in ((BID, -1), (ASK, 1)):
            price = mid
            for _ in range(levels):
                price += direction * self.random.choice((1, 1, 1, 2, 3))
                self.put(side, price, self.size())
        self.skip = 0

    def copy(self):
        return dict(self.sides[BID]), dict(self.sides[ASK])

    def size(self):
        return self.lot * self.random.choice((1, 2, 5, 10, 40, 250)) * self.random.randint(1, 99)

    def put(self, side, price, size):
        prices = self.prices[side]
        if size:
            if price not in self.sides[side]:
                bisect.insort(prices, price)
            self.sides[side][price] = size
        elif self.sides[side].pop(price, None) is not None:
            prices.pop(bisect.bisect_left(prices, price))

    def best(self, side):
        return self.prices[side][-1 if side == BID else 0]

    def at(self, side, rank):
        """The price `rank` levels behind the best."""
        return self.prices[side][-1 - rank if side == BID else rank]

    def touch(self):
        bid, ask = self.best(BID), self.best(ASK)
        return bid, self.sides[BID][bid], ask, self.sides[ASK][ask]

    def run(self, count, contiguous):
        events, last, trades, touch = [], 0, 0, self.touch()
        start = self.copy()
        for number in range(count):
            levels, trade = self.closing(start) if number == count - 1 else self.draw()
            first = last + 1 + (0 if contiguous else self.random.choice((0, 3, 57, 400)))
            last = first + max(len(levels), 1) + self.random.randint(0, 5) - 1
            moved, touch = touch != self.touch(), self.touch()
            events.append(Event(tuple(levels), trade, first, last, touch, moved, trades))
            trades += trade is not None
        return events

    def closing(self, start):
        """The levels that lead back to the first book."""
        levels = []
        for side in (BID, ASK):
            gone = [price for price in self.sides[side] if price not in start[side]]
            levels += [(side, price, 0) for price in gone]
            levels += [(side, price, size) for price, size in start[side].items() if self.sides[side].get(price) != size]
        self.apply(levels)
        return levels, None

    def apply(self, levels):
        for side, price, size in levels:
            self.put(side, price, size)

    def draw(self):
        roll = self.random.random()
        if roll < 0.18:
            return self.hit()
        levels = self.improve() if roll < 0.28 else self.shuffle()
        self.apply(levels)
        return levels, None

    def hit(self):
        """A trade takes part or all of the touch; with it goes the level, if enough are left."""
        side = self.random.choice((BID, ASK))
        price = self.best(side)
        resting = self.sides[side][price]
        whole = len(self.prices[side]) > LEVELS_MIN and self.random.random() < 0.3
        taken = resting if whole or resting <= self.lot else self.lot * self.random.randint(1, max(1, resting // self.lot - 1))
        left = resting - taken
        if not left and not whole:
            left = self.lot     # the level is refilled at once, as a hidden order would
        levels = [(side, price, left)]
        self.apply(levels)
        return levels, (price, taken, ASK if side == BID else BID)

    def improve(self):
        side = self.random.choice((BID, ASK))
        price = self.best(side) + (1 if side == BID else -1)
        if price == self.best(1 - side):
            return self.shuffle()
        return [(side, price, self.size())]

    def shuffle(self):
        """One to six levels change, most of them near the touch; now and then a deletion names no level."""
        changes, room = {}, [len(self.prices[BID]), len(self.prices[ASK])]
        for _ in range(self.random.choice((1, 1, 2, 2, 3, 4, 6))):
            side = self.random.choice((BID, ASK))
            rank = min(int(self.random.expovariate(0.25)), len(self.prices[side]) - 1)
            price = self.at(side, rank)
            roll = self.random.random()
            if roll < 0.25 and room[side] > LEVELS_MIN and (side, price) not in changes:
                changes[side, price] = 0
                room[side] -= 1
            elif roll < 0.5 and room[side] < 2 * self.levels:
                behind = price + (-1 if side == BID else 1)
                changes.setdefault((side, behind), self.size())
                room[side] += behind not in self.sides[side]
            elif roll < 0.52:
                far = self.at(side, len(self.prices[side]) - 1) + (-9 if side == BID else 9)
                changes.setdefault((side, far), 0)
            else:
                changes.setdefault((side, price), self.size())
        return sorted((side, price, size) for (side, price), size in changes.items())


def generate(instruments, seed, levels=LEVELS_DEFAULT, contiguous=True):
    """Give every instrument its loop; many instruments get shorter ones."""
    events = max(EVENTS_PER_LOOP_MIN, min(EVENTS_PER_LOOP, EVENTS_PER_MARKET_MAX // max(1, len(instruments))))
    for instrument in instruments:
        instrument.generate(seed, events, levels, contiguous)
