"""What a stream costs: learned while it runs, remembered between runs, guessed before it was ever seen. Pure; the clock is passed in.

No venue publishes the rate of a stream. Loads learns it per (venue, endpoint, wire) and forgets exponentially; for a stream
never seen it answers a prior of its channel and kind of instrument. Both lines of a stream share one entry.
"""
import bisect
import dataclasses
import math

HALF_LIFE_S = 60.0          # of the rates a plan uses
SLOW_HALF_LIFE_S = 1800.0   # of the rate that growth is measured against
BURST_HALF_LIFE_S = 3600.0  # a burst counts for hours, not for seconds
GROWTH_AFTER_S = 600.0      # growth of a stream watched for less is not known
ENTRY_MAX = 100_000         # streams remembered; the one unseen for longest goes first
BURST_WINDOWS_NS = (10_000_000, 100_000_000, 1_000_000_000)

# Messages a second of one busy symbol, from recordings of BTC and ETH (2024) and probes of whole universes. "" is any kind.
RATES = {
    ("quote", "spot"): 76,           # Binance spot bookTicker: 151 for two symbols
    ("quote", "perpetual"): 167,     # USD-M bookTicker: 333 for two
    ("quote", "future"): 51,         # COIN-M bookTicker: 102 for two
    ("quote", ""): 76,
    ("trade", "spot"): 23,           # 46 for two
    ("trade", "perpetual"): 42,      # 84 for two
    ("trade", ""): 6,                # COIN-M: 12 for two
    ("agg_trade", "spot"): 23, ("agg_trade", "perpetual"): 42, ("agg_trade", ""): 6,
    ("book", "spot"): 10,            # depth@100ms
    ("book", "perpetual"): 19,       # depth@0ms: 38 for two
    ("book", "future"): 73,          # COIN-M depth@0ms: 145 for two
    ("book", "option"): 2,           # Deribit: 131 books 153 to 187 a second
    ("book", ""): 14,                # OKX books: 27 for two
    ("ticker", ""): 3,               # Deribit ticker
    ("mark", ""): 1, ("index", ""): 1, ("funding", ""): 1, ("open_interest", ""): 1,   # one a second where documented
    ("liquidation", ""): 0.1, ("candle", ""): 4, ("greeks", ""): 1, ("instrument", ""): 0.01,
    ("", ""): 10,
}
BYTES = {  # of one message, median of the same recordings
    "quote": 179, "trade": 168, "agg_trade": 195, "book": 610, "ticker": 746, "mark": 200, "index": 160, "funding": 160,
    "open_interest": 160, "liquidation": 200, "candle": 320, "greeks": 746, "instrument": 600, "": 250}
RECORDS = {"book": 12, "ticker": 2, "greeks": 2, "": 1}  # of one message: a depth update of about 11 levels and its touch
CPU_NS = 12_400             # of one message: what the reference server spends on the socket side of a frame
BURSTS = (1.4, 3.0, 7.0)    # messages within 10 ms, 100 ms, 1 s, as multiples of a second's mean: 654, 1,358 and 3,088 of 455/s and 145/s


@dataclasses.dataclass(slots=True)
class Load:
    """One stream. seconds: how long it was watched; 0 is a prior."""
    messages_per_s: float
    bytes_per_s: float
    records_per_s: float
    cpu_ns: float               # a message
    bursts: tuple = (0.0, 0.0, 0.0)   # messages within 10 ms, 100 ms and 1 s, 99th percentile
    slow_per_s: float = 0.0     # messages a second with SLOW_HALF_LIFE_S
    seconds: float = 0.0
    seen_s: float = 0.0         # when last measured, of a clock that runs over restarts

    @property
    def growth(self):
        """Messages a second that come on top each second. Of a straight rise r, an average of time constant t lags by r·t."""
        if self.seconds < GROWTH_AFTER_S:
            return 0.0
        return (self.messages_per_s - self.slow_per_s) / ((SLOW_HALF_LIFE_S - HALF_LIFE_S) / math.log(2))


def prior(channel="", kind=""):
    """The Load of a stream nobody has seen."""
    rate = next(RATES[key] for key in ((channel, kind), (channel, ""), ("", "")) if key in RATES)
    return Load(rate, rate * BYTES.get(channel, BYTES[""]), rate * RECORDS.get(channel, RECORDS[""]), CPU_NS,
                tuple(rate * factor for factor in BURSTS))


def bursts(times_ns):
    """Messages in the last 10 ms, 100 ms and 1 s before each message, 99th percentile. times_ns ascend."""
    found = []
    for window in BURST_WINDOWS_NS:
        counts = sorted(at + 1 - bisect.bisect_right(times_ns, time - window) for at, time in enumerate(times_ns))
        found.append(float(counts[(len(counts) * 99 - 1) // 100]) if counts else 0.0)
    return tuple(found)


def _toward(old, new, watched, seconds, half_life_s):
    """Exponential average; a young one is the plain mean, so that its first value does not stick."""
    share = max(1 - 0.5 ** (seconds / half_life_s), seconds / (watched + seconds))
    return old + (new - old) * share


class Loads:
    """All streams' loads. An entry is found by (venue, endpoint, wire)."""

    def __init__(self, entry_max=ENTRY_MAX):
        self.entries, self.entry_max, self.forgotten = {}, entry_max, 0
        self._priors = {}

    def of(self, stream):
        """The Load of a plan's stream: learned, or the prior of its channel and kind."""
        return self.entries.get((stream.venue, stream.endpoint, stream.wire)) or self._prior(stream.channel, stream.kind)

    def _prior(self, channel, kind):
        found = self._priors.get((channel, kind))
        if found is None:
            found = self._priors[channel, kind] = prior(channel, kind)
        return found

    def measure(self, key, now_s, seconds, messages, size=None, records=None, cpu_ns=None, burst=None, like=None):
        """A stream brought `messages` within the `seconds` before now_s. What is None was not measured and stays as it is,
        at first as in `like` (a prior); cpu_ns is of one message, burst what bursts() answers."""
        if seconds <= 0 or messages < 0:
            raise ValueError(f"{key}: {messages} messages in {seconds} s is no measurement")
        load = self.entries.get(key)
        if load is None:
            like = like or prior()
            load = self.entries[key] = Load(0.0, 0.0, 0.0, like.cpu_ns, seen_s=now_s)
            self._bound()
        watched, rate = load.seconds, messages / seconds
        shape = load if load.messages_per_s else like or prior()
        per_message = shape.bytes_per_s / shape.messages_per_s, shape.records_per_s / shape.messages_per_s
        load.bytes_per_s = _toward(load.bytes_per_s, rate * per_message[0] if size is None else size / seconds, watched, seconds, HALF_LIFE_S)
        load.records_per_s = _toward(load.records_per_s, rate * per_message[1] if records is None else records / seconds, watched, seconds, HALF_LIFE_S)
        load.messages_per_s = _toward(load.messages_per_s, rate, watched, seconds, HALF_LIFE_S)
        load.slow_per_s = _toward(load.slow_per_s, rate, watched, seconds, SLOW_HALF_LIFE_S)
        if cpu_ns is not None:
            load.cpu_ns = _toward(load.cpu_ns, cpu_ns, watched, seconds, HALF_LIFE_S)
        fade = 0.5 ** (seconds / BURST_HALF_LIFE_S)
        load.bursts = tuple(max(old * fade, new) for old, new in zip(load.bursts, burst or (0.0, 0.0, 0.0)))
        load.seconds, load.seen_s = watched + seconds, max(load.seen_s, now_s)

    def merge(self, other):
        """Take in what another watched: means weighed by time watched, the higher burst. Neither is changed but self."""
        for key, theirs in other.entries.items():
            mine = self.entries.get(key)
            self.entries[key] = dataclasses.replace(theirs) if mine is None else _merged(mine, theirs)
        self._bound()

    def _bound(self):
        """Forget the longest unseen, a hundredth of all at once: looking for them costs a walk over all."""
        surplus = len(self.entries) - self.entry_max
        if surplus <= 0:
            return
        for key in sorted(self.entries, key=lambda key: (self.entries[key].seen_s, key))[:max(surplus, self.entry_max // 100)]:
            del self.entries[key]
            self.forgotten += 1

    def dump(self):
        """As plain data, for saving."""
        return {"streams": [[*key, *_row(load)] for key, load in self.entries.items()]}

    @classmethod
    def load(cls, document, entry_max=ENTRY_MAX):
        """What dump() gave. ValueError where it is damaged."""
        loads = cls(entry_max)
        try:
            for venue, endpoint, wire, *row in document["streams"]:
                rates, (slow, seconds, seen), burst = row[:4], row[4:7], tuple(row[7])
                values = [float(value) for value in (*rates, slow, seconds, seen, *burst)]
                if not all(map(math.isfinite, values)) or min(values) < 0 or len(burst) != len(BURST_WINDOWS_NS):
                    raise ValueError(f"{venue}/{endpoint} {wire}: {row} is no load")
                loads.entries[str(venue), str(endpoint), str(wire)] = Load(*values[:4], tuple(values[7:]), *values[4:7])
        except (TypeError, KeyError, IndexError) as error:
            raise ValueError(f"saved loads are damaged: {error!r}") from None
        loads._bound()
        return loads


def _row(load):
    return [load.messages_per_s, load.bytes_per_s, load.records_per_s, load.cpu_ns, load.slow_per_s, load.seconds, load.seen_s, list(load.bursts)]


def _merged(mine, theirs):
    whole = mine.seconds + theirs.seconds

    def mean(name):
        if not whole:
            return getattr(mine, name)
        return (getattr(mine, name) * mine.seconds + getattr(theirs, name) * theirs.seconds) / whole
    return Load(*map(mean, ("messages_per_s", "bytes_per_s", "records_per_s", "cpu_ns")), tuple(map(max, mine.bursts, theirs.bursts)),
                mean("slow_per_s"), whole, max(mine.seen_s, theirs.seen_s))
