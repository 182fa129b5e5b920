"""Which instrument lives on which worker, and which stream on which connection. A pure, deterministic function.

    plan(streams, profiles, load, placement, settings) → Plan(placement, moves, headroom, problems)

An instrument goes to one worker with all its streams: longest first to the least loaded worker, then moves and swaps
that lower the peak. A stream goes to a connection of that worker, of its endpoint and line. What is placed stays, unless
a limit forces it, a learned limit is passed, a heavy stream has neighbours, or the workers differ by more than the
hysteresis: then only moves that pay are made, so planning a planned placement moves nothing. A venue's limits are never
exceeded, in no state between the moves either; what cannot be placed is a PlanError that names it.
"""
import bisect
import collections
import dataclasses
import heapq

from feedhandler.capacity import headroom, order
from feedhandler.capacity.limits import MILLI, Fill, NoLoad, Rules, addresses, item_of, rate_limit
from feedhandler.capacity.pack import Pack
from feedhandler.capacity.profile import USE_PERCENT
from feedhandler.capacity.squeeze import squeeze

NS = 1_000_000_000        # CPU of a worker, in nanoseconds a second
GOAL_PERMILLE = 5         # good enough: a peak this close to its lower bound
IDLE_PERCENT = 5          # workers below this share of a CPU are not balanced: nothing would be gained
WORKER_MAX = 1 << 16      # more than there are: no bound
LEVEL_MAX, LEVEL_STEPS, LEVEL_PERCENT = 32, 5000, 2   # units and steps of a search for a level beginning, where it is over the bound by more
SETTLE_MAX = 8            # rounds in which connections that one group left over serve another that was denied one
SWAP_PARTNERS = 8         # of the coldest workers, tried for a swap with the hottest


class PlanError(ValueError):
    """Wanted streams that do not fit; .problems is one sentence each."""

    def __init__(self, problems):
        self.problems = problems
        super().__init__("\n".join(problems))


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """One stream to place. (venue, endpoint, wire, line) is its key; channel and kind are for a load never seen."""
    venue: str
    endpoint: str
    wire: str
    instrument: int
    symbol: str
    line: int = 0        # 0 and 1: lines A and B; STANDBY
    channel: str = ""
    kind: str = ""

    @property
    def key(self):
        return self.venue, self.endpoint, self.wire, self.line


@dataclasses.dataclass(slots=True)
class Connection:
    """One connection and the streams on it. id is stable over plans that keep it."""
    id: int
    worker: int
    venue: str
    endpoint: str
    line: int
    streams: list = dataclasses.field(default_factory=list)


@dataclasses.dataclass(slots=True)
class Placement:
    workers: dict          # instrument → worker
    connections: list      # of Connection, by id
    standbys: dict = dataclasses.field(default_factory=dict)   # instrument → worker


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """What the operator allows beside the venues' profiles."""
    workers: int = 1
    drained: tuple = ()              # workers that are to hold nothing
    messages_per_s: int = 20_000     # learned limit of one connection, where its profile has none
    streams_per_worker: int = 2000
    target_percent: int = 60         # of a learned limit, a connection's and a worker's CPU, that may be used
    heavy_factor: int = 10           # a stream so many times its neighbours' mean is kept apart
    heavy_messages_per_s: int = 100  # … if it brings this many
    hysteresis_percent: int = 10     # imbalance that is left alone
    improve: bool = True             # False: what is placed moves only where a limit forces it
    limits: dict = dataclasses.field(default_factory=dict)   # connection id → messages a second it was found limited to
    sources_b: tuple = ()            # venues whose line B leaves from an address of its own, with budgets of its own


@dataclasses.dataclass(slots=True)
class Plan:
    placement: Placement
    moves: list            # of order.Move, in the order in which they may be made
    headroom: list         # of headroom.Budget
    problems: list         # sentences on learned limits that no placement can hold; hard limits are a PlanError


EMPTY = Placement({}, [])


def plan(streams, profiles, load=NoLoad, placement=EMPTY, settings=Settings()):
    """The Plan of `streams` (Wanted); profiles is {(venue, endpoint): Profile}, load has of(stream) → load.Load or None."""
    rules, places = {key: Rules(profile) for key, profile in profiles.items()}, addresses(profiles, settings)
    items, problems = _items(streams, rules, load)
    if problems:
        raise PlanError(problems)
    units = _Units(list(items.values()))
    attempt, problems = _fitting(units, rules, places, placement, settings)
    if problems:
        raise PlanError(problems)
    found = attempt.placed()
    for _ in range(SETTLE_MAX if attempt.unsettled else 0):
        because = attempt.because
        attempt, _ = _fitting(units, rules, places, found, settings, attempt.why)
        attempt.because = because or attempt.because
        before, found = found, attempt.placed()
        if before == found:
            break
    moves = order.moves(placement, attempt.fills, items, rules, places, attempt.why, load, attempt.because)
    return Plan(found, moves, headroom.budgets(attempt.fills, profiles, settings), attempt.soft_problems())


def _connection(fill):
    venue, endpoint, line = fill.place
    return Connection(fill.id, fill.worker, venue, endpoint, line, [item.stream for item in fill.items.values()])


def unit_instrument(unit):
    """The instrument of a unit: the owner's has its id, the standby's the complement of it."""
    return unit if unit >= 0 else ~unit


# -- streams as items ---------------------------------------------------------------------------------------------

def _items(streams, rules, load):
    """({key: Item}, problems): problems are what no placement can help."""
    items, problems, alone = {}, [], {}
    for stream in streams:
        rule = rules.get((stream.venue, stream.endpoint))
        if rule is None:
            problems.append(f"{stream.venue} has no endpoint {stream.endpoint!r} for {stream.wire}")
            continue
        item = item_of(stream, rule, load)
        if item.key in items:
            problems.append(f"{stream.venue}/{stream.endpoint}: {stream.wire} is wanted twice on line {stream.line}")
        items[item.key] = item
        if rule.free:
            continue
        if rule.profile.routing and not rule.profile.delivered(stream.wire):
            problems.append(f"{stream.venue}/{stream.endpoint} does not deliver {stream.wire}")
        if rule not in alone:
            alone[rule] = Fill(0, 0, item.place, rule)
        if not alone[rule].takes(item):
            problems.append(f"{stream.venue}/{stream.endpoint}: {stream.wire} alone is above the limits of a connection")
    return items, problems


class _Units:
    """What is placed on workers as a whole: an instrument's own streams, and its standby's."""

    def __init__(self, items):
        self.items, self.by_unit = items, {}
        for item in items:
            found = self.by_unit.get(item.unit)
            if found is None:
                self.by_unit[item.unit] = [item]
            else:
                found.append(item)
        self.cpu = {unit: sum([item.cpu for item in of]) for unit, of in self.by_unit.items()}
        self.venue = {unit: of[0].stream.venue for unit, of in self.by_unit.items()}
        self.lines = {}          # venue → {endpoint: set of lines}
        for venue, endpoint, line in {item.place for item in items}:
            self.lines.setdefault(venue, {}).setdefault(endpoint, set()).add(line)


# -- attempts -----------------------------------------------------------------------------------------------------

def _fitting(units, rules, places, placement, settings, why={}):
    """(_Attempt, problems): the first that keeps every limit. Where addresses were over, what must move goes to fewer
    workers at a time, then all of the venue lives on fewer, then it is packed anew; the last is searched for."""
    most = {venue: _worker_most(venue, units, places) for venue in units.lines}
    held = _held(units, placement)
    spread = {}
    for venue, limit in most.items():
        spread[venue] = held[venue] or limit if limit < settings.workers else limit
    receivers = {venue: settings.workers for venue in most if held[venue]}   # workers that may get more of it
    fresh, first = set(), []         # venues packed from nothing; what was over at first
    while True:
        attempt = _Attempt(units, rules, places, _without(placement, fresh), settings, spread, why, receivers)
        problems, venues = attempt.over()
        again = [venue for venue in venues if receivers.get(venue, 1) > 1 or spread[venue] > 1 or venue not in fresh]
        first = first or problems
        if not again:
            attempt.unsettled |= attempt.denied or bool(first)
            if problems:
                attempt, problems = _squeezed(attempt, placement, problems)
            if first and not problems:
                attempt.because = f"only packed anew do all streams fit: {first[0].split(';')[0]}"
            return attempt, problems
        for venue in again:
            if receivers.get(venue, 1) > 1:
                receivers[venue] //= 2
            elif spread[venue] > 1:
                receivers.pop(venue, None)
                spread[venue] = min(spread[venue], settings.workers) // 2
            else:
                fresh.add(venue)
                spread[venue] = most[venue]


def _squeezed(failed, placement, problems):
    """(_Attempt, problems) of a placement searched for where `failed` broke limits; if there is none, `failed` again."""
    units, settings = failed.units, failed.settings
    found = squeeze(units.by_unit, failed.rules, failed.places, placement, settings) if failed.usable else None
    if found is None:
        return failed, problems
    home, connections = found
    packed = Placement({unit: worker for unit, worker in home.items() if unit >= 0}, _kept_ids(connections, placement),
                       {~unit: worker for unit, worker in home.items() if unit < 0})
    for improve in (True, False):    # level the workers if limits allow it, else as it was found
        attempt = _Attempt(units, failed.rules, failed.places, packed, dataclasses.replace(settings, improve=improve),
                           dict.fromkeys(units.lines, WORKER_MAX), failed.why)
        said, _ = attempt.over()
        if not said:
            attempt.settings, attempt.unsettled = settings, True
            return attempt, said
    return failed, problems


def _kept_ids(connections, placement):
    """Connections of (worker, place, streams), each with the id of the present one of its place that most of its streams are on."""
    was = {stream.key: connection for connection in placement.connections for stream in connection.streams}
    free = {connection.id for connection in placement.connections}
    next_id, found = max(free, default=0) + 1, []
    for worker, place, streams in connections:
        ids = collections.Counter(old.id for old in map(was.get, (stream.key for stream in streams)) if old is not None and old.id in free
                                  and (old.worker, old.venue, old.endpoint, old.line) == (worker, *place))
        id = max(ids, key=lambda id: (ids[id], -id)) if ids else next_id
        next_id += not ids
        free.discard(id)
        found.append(Connection(id, worker, *place, streams))
    return found


def _worker_most(venue, units, places):
    """Workers that may hold a venue's instruments: with few connections an address, not every worker can have its own."""
    counts = {}          # address → lines there
    for endpoint, lines in units.lines[venue].items():
        for line in lines:
            address = places[venue, endpoint, line]
            counts[address] = counts.get(address, 0) + 1
    return min([max(1, address.comfort // count) for address, count in counts.items() if address.comfort is not None], default=WORKER_MAX)


def _held(units, placement):
    """{venue: workers that hold any of it now}."""
    held = {venue: set() for venue in units.lines}
    for connection in placement.connections:
        if connection.venue in held:
            held[connection.venue].add(connection.worker)
    return {venue: len(workers) for venue, workers in held.items()}


def _without(placement, venues):
    """The placement as if nothing of these venues were placed; their connections' ids stay used."""
    if not venues:
        return placement
    gone = {stream.instrument for connection in placement.connections if connection.venue in venues for stream in connection.streams}
    return Placement({id: worker for id, worker in placement.workers.items() if id not in gone},
                     [dataclasses.replace(connection, streams=[]) if connection.venue in venues else connection for connection in placement.connections],
                     {id: worker for id, worker in placement.standbys.items() if id not in gone})


class _Attempt:
    """One try to place everything."""

    def __init__(self, units, rules, places, placement, settings, spread, why, receivers={}):
        self.units, self.rules, self.places, self.placement, self.settings = units, rules, places, placement, settings
        self.usable = [worker for worker in range(settings.workers) if worker not in settings.drained]
        self.unsettled = False   # whether the same again may find better
        self.why = dict(why)     # unit or key → why it moves
        self.because = ""        # … and why others do
        self.short = set()       # addresses where a connection wanted for comfort could not be opened
        self.cpu = dict.fromkeys(self.usable, 0)
        self.count = dict.fromkeys(self.usable, 0)
        self.home = {}           # unit → worker
        self.on = {worker: [] for worker in self.usable}   # worker → [(cpu, unit)], ascending
        self.place_units(spread, {venue: most for venue, most in receivers.items() if most < settings.workers})
        self.fills = self.place_streams()

    def placed(self):
        return Placement({unit: worker for unit, worker in sorted(self.home.items()) if unit >= 0}, [_connection(fill) for fill in self.fills],
                         {unit_instrument(unit): worker for unit, worker in sorted(self.home.items()) if unit < 0})

    # -- instruments to workers ---------------------------------------------------------------------------------------

    def place_units(self, spread, receivers):
        if not self.usable:
            return
        self.allowed = {venue: self.allowed_workers(venue, most) for venue, most in spread.items()}
        waiting = [unit for unit in sorted(self.units.by_unit, key=lambda unit: (unit < 0, unit)) if not self.keep(unit)]
        for venue, most in receivers.items():
            self.allowed[venue] = set(sorted(self.allowed[venue], key=lambda worker: (self.cpu[worker], worker))[:most])
        self.spread_out(waiting)
        for worker in self.usable:
            self.on[worker].sort()
        weights = list(self.units.cpu.values())
        self.bound = lower_bound(weights, len(self.usable))
        self.improve(set(waiting), 0)
        if waiting and len(waiting) == len(self.home) <= LEVEL_MAX:
            self.begin_level()
        peak, settings = max(self.cpu.values()), self.settings
        uneven = peak * 100 > self.bound * (100 + settings.hysteresis_percent) and peak * 100 > NS * IDLE_PERCENT
        if settings.improve and not receivers and (uneven or peak * 100 > NS * settings.target_percent) and len(waiting) < len(self.home):
            self.improve(set(self.home), self.bound * 2 // 100)

    def allowed_workers(self, venue, most):
        held = {connection.worker for connection in self.placement.connections if connection.venue == venue}
        return set(sorted(self.usable, key=lambda worker: (worker not in held, worker))[:most])

    def keep(self, unit):
        """Whether a unit stays where it is."""
        current = self.placement.workers if unit >= 0 else self.placement.standbys
        worker = current.get(unit_instrument(unit))
        if worker is None:
            return False
        if self.may_hold(worker, unit):
            self.put(unit, worker)
            return True
        self.why[unit] = self.refusal(worker, unit)
        return False

    def refusal(self, worker, unit):
        """Why a worker may not hold a unit."""
        venue, size = self.units.venue[unit], len(self.units.by_unit[unit])
        if worker not in self.cpu:
            return f"worker {worker} is drained" if worker in self.settings.drained else f"worker {worker} is no more"
        if worker not in self.allowed[venue]:
            return f"the connections that {venue} allows suffice for {len(self.allowed[venue])} workers, worker {worker} is none of them"
        if self.home.get(~unit) == worker:
            return f"worker {worker} holds its {'owner' if unit < 0 else 'standby'}"
        return f"worker {worker} holds {self.count[worker]} streams, with its {size} they are more than {self.settings.streams_per_worker}"

    def may_hold(self, worker, unit):
        return (worker in self.allowed[self.units.venue[unit]] and self.home.get(~unit) != worker
                and self.count[worker] + len(self.units.by_unit[unit]) <= self.settings.streams_per_worker)

    def put(self, unit, worker):
        self.home[unit] = worker
        self.cpu[worker] += self.units.cpu[unit]
        self.count[worker] += len(self.units.by_unit[unit])
        self.on[worker].append((self.units.cpu[unit], unit))

    def spread_out(self, waiting):
        """Longest first, each to the least loaded worker that may hold it."""
        heap = [(self.cpu[worker], self.count[worker], worker) for worker in self.usable]
        heapq.heapify(heap)
        for unit in sorted(waiting, key=lambda unit: (-self.units.cpu[unit], unit < 0, unit)):
            aside = []
            while heap and not self.may_hold(heap[0][2], unit):
                aside.append(heapq.heappop(heap))
            if heap:
                worker = heapq.heappop(heap)[2]
            else:                # none has room: over() says so, if a limit it is
                self.unsettled = True
                worker = min(aside, key=lambda entry: (self.home.get(~unit) == entry[2], entry))[2]
                aside = [entry for entry in aside if entry[2] != worker]
            self.put(unit, worker)
            for entry in [*aside, (self.cpu[worker], self.count[worker], worker)]:
                heapq.heappush(heap, entry)

    def improve(self, movable, pay):
        """Move and swap units off the hottest worker while its load falls by more than `pay` each time."""
        for _ in range(4 * len(movable)):
            hot = max(self.usable, key=lambda worker: (self.cpu[worker], -worker))
            if self.cpu[hot] * 1000 <= self.bound * (1000 + GOAL_PERMILLE) or not self.relieve(hot, movable, pay):
                return

    def begin_level(self):
        """A few units, all new, are placed by search where steps one by one ended high, or with too many streams on a worker."""
        over = max(self.count.values()) > self.settings.streams_per_worker
        peak = sum(self.cpu.values()) + 1 if over else max(self.cpu.values())
        if over or peak * 100 > self.bound * (100 + LEVEL_PERCENT):
            for unit, worker in _level(self, sorted(self.home, key=lambda unit: (-self.units.cpu[unit], unit)), peak).items():
                if worker != self.home[unit]:
                    self.shift(unit, self.home[unit], worker)

    def relieve(self, hot, movable, pay):
        """One best step off a worker; whether there was one."""
        cold = sorted((worker for worker in self.usable if worker != hot), key=lambda worker: (self.cpu[worker], worker))
        best = None              # (new peak of the two, unit there, unit back or None, worker)
        for worker in cold[:SWAP_PARTNERS]:
            gap = self.cpu[hot] - self.cpu[worker]
            if gap <= pay:
                break
            for unit, back in self.steps(hot, worker, gap // 2, movable):
                shift = self.units.cpu[unit] - (self.units.cpu[back] if back is not None else 0)
                peak = max(self.cpu[hot] - shift, self.cpu[worker] + shift)
                if shift > 0 and self.cpu[hot] - peak > pay and (best is None or peak < best[0]):
                    best = peak, unit, back, worker
        if best is None:
            return False
        _, unit, back, worker = best
        self.shift(unit, hot, worker)
        if back is not None:
            self.shift(back, worker, hot)
        return True

    def steps(self, hot, worker, want, movable):
        """Candidates that shift about `want` from hot to worker: single units near it, and one swap a unit."""
        theirs = [entry for entry in self.on[worker] if entry[1] in movable]
        for cpu, unit in self.on[hot]:
            if unit not in movable or not self.allowed_there(unit, worker):
                continue
            if self.may_hold(worker, unit):
                yield unit, None
            if cpu > want:
                at = bisect.bisect_left(theirs, (cpu - want,))
                for _, back in theirs[max(0, at - 1):at + 1]:
                    if self.allowed_there(back, hot) and self.swap_fits(unit, hot, back, worker):
                        yield unit, back

    def allowed_there(self, unit, worker):
        return worker in self.allowed[self.units.venue[unit]] and self.home.get(~unit) != worker

    def swap_fits(self, unit, hot, back, worker):
        more = len(self.units.by_unit[unit]) - len(self.units.by_unit[back])
        most = self.settings.streams_per_worker
        return unit != ~back and self.count[worker] + more <= most and self.count[hot] - more <= most

    def shift(self, unit, source, target):
        cpu = self.units.cpu[unit]
        self.why.setdefault(unit, f"worker {source} carries {_cpu(self.cpu[source])} of a CPU, worker {target} {_cpu(self.cpu[target])}")
        self.on[source].remove((cpu, unit))
        self.cpu[source] -= cpu
        self.count[source] -= len(self.units.by_unit[unit])
        self.put(unit, target)
        self.on[target].pop()
        bisect.insort(self.on[target], (cpu, unit))

    # -- streams to connections ---------------------------------------------------------------------------------------

    def place_streams(self):
        """All connections with their streams, by id."""
        self.next_id = max([connection.id for connection in self.placement.connections], default=0) + 1
        groups, before, ids = {}, {}, {}     # ids: (worker, place) → those of its connections
        for item in self.units.items:
            worker = self.home.get(item.unit)
            if worker is not None:
                groups.setdefault((worker, item.place), []).append(item)
        for connection in self.placement.connections:
            ids.setdefault((connection.worker, (connection.venue, connection.endpoint, connection.line)), set()).add(connection.id)
            for stream in connection.streams:
                before[stream.key] = connection
        self.spare, packs = {}, []       # address → connections that may still be opened for comfort
        for (worker, place), items in groups.items():
            pack = Pack(self, worker, place, items, before, ids.get((worker, place)))
            packs.append(pack)
            usable = pack.address.comfort
            self.spare[pack.address] = self.spare.get(pack.address, 1 << 30 if usable is None else usable) - pack.claimed
        for pack in packs:
            pack.part()
        for pack in packs:       # what others turned out not to need
            pack.part()
        fills = []
        for pack in packs:
            fills += pack.pack()
        return sorted(fills, key=lambda fill: fill.id)

    @property
    def denied(self):
        """Whether some group was denied a connection that another left over in the end."""
        open_ = {}
        for fill in self.fills if self.short else ():
            address = self.places[fill.place]
            open_[address] = open_.get(address, 0) + 1
        return any(open_.get(address, 0) < address.comfort for address in self.short)

    # -- judging ------------------------------------------------------------------------------------------------------

    def over(self):
        """(sentences, venues): hard limits this attempt breaks."""
        if not self.usable and self.units.items:
            return ["every worker is drained; leave one that may hold instruments"], set()
        problems, venues = [], set()
        open_, streams = {}, {}
        for fill in self.fills:
            address = self.places[fill.place]
            open_[address] = open_.get(address, 0) + 1
            streams[address] = streams.get(address, 0) + len(fill.items)
            if address.connections is not None and open_[address] > address.connections:
                venues.add(fill.place[0])
        problems += _over(open_, streams)
        problems += [f"worker {worker} would hold {count} streams, the target is {self.settings.streams_per_worker}; raise instance.workers or "
                     f"load.streams_per_worker" for worker, count in sorted(self.count.items()) if count > self.settings.streams_per_worker]
        problems += [f"instrument {~unit} has no second worker for its standby; raise instance.workers"
                     for unit, worker in sorted(self.home.items()) if unit < 0 and self.home.get(~unit) == worker]
        return problems, venues

    def soft_problems(self):
        """Sentences on learned limits passed with the best placement there is."""
        target = self.settings.target_percent
        problems = [f"worker {worker} would use {_cpu(cpu)} of its CPU, the target is {target} %; raise instance.workers"
                    for worker, cpu in sorted(self.cpu.items()) if cpu * 100 > NS * target]
        for fill in self.fills:
            limit = rate_limit(fill.rules.profile, self.settings, fill.id)
            if fill.rate * 100 > limit * target:
                problems.append(f"connection {fill.id} of {fill.place[0]}/{fill.place[1]} would carry {fill.rate // MILLI:,} messages/s, the target is "
                                f"{target} % of {limit // MILLI:,}" + ("; one stream alone brings them" if len(fill.items) == 1 else
                                                                       "; the address may open no more connections"))
        open_ = collections.Counter(self.places[fill.place] for fill in self.fills)
        problems += [f"{address.name} needs {count} of the {address.connections} connections this address may hold: none is left for a rollover to open "
                     f"first, so rollovers there break before they make" for address, count in open_.items()
                     if address.connections is not None and count > address.comfort]
        return problems


def _level(attempt, units, best):
    """{unit: worker} with the lowest peak below `best` that LEVEL_STEPS of branch and bound find, heaviest first; {}: none."""
    cpu, count, home = dict.fromkeys(attempt.usable, 0), dict.fromkeys(attempt.usable, 0), {}
    found, steps = {}, 0

    def place(at):
        nonlocal best, found, steps
        steps += 1
        if at == len(units):
            best, found = max(cpu.values()), dict(home)
            return
        unit, seen = units[at], set()
        own, size = attempt.units.cpu[unit], len(attempt.units.by_unit[unit])
        for worker in sorted(cpu, key=lambda worker: (cpu[worker], worker)):
            if steps > LEVEL_STEPS or best * 1000 <= attempt.bound * (1000 + GOAL_PERMILLE) or cpu[worker] + own >= best:
                return
            if (cpu[worker], count[worker]) in seen or count[worker] + size > attempt.settings.streams_per_worker or home.get(~unit) == worker \
                    or worker not in attempt.allowed[attempt.units.venue[unit]]:
                continue
            seen.add((cpu[worker], count[worker]))
            home[unit] = worker
            cpu[worker] += own
            count[worker] += size
            place(at + 1)
            cpu[worker] -= own
            count[worker] -= size
            del home[unit]
    place(0)
    return found


def _over(open_, streams):
    """Sentences on addresses with more connections or streams ({address: count}) than they may have."""
    for address in open_:
        for count, most, others, noun in ((open_[address], address.connections, address.others[0], "connections"),
                                          (streams[address], address.streams, address.others[1], "streams")):
            if most is not None and count > most:
                held = f", without the {others} that others under it hold" if others else ""
                yield (f"{address.name} needs {count} {noun}, this address may hold {most} "
                       f"({USE_PERCENT} % of the documented limit{held}); subscribe fewer symbols or channels there")


def _cpu(cpu):
    return f"{cpu * 100 / NS:.1f} %"


def lower_bound(weights, bins):
    """No placement of these weights on so many bins has a lower peak: the mean, the largest, and that among the
    k·bins + 1 largest some k + 1 share a bin."""
    if not weights or not bins:
        return 0
    ordered = sorted(weights, reverse=True)
    bound = max(-(-sum(ordered) // bins), ordered[0])
    for k in range(1, (len(ordered) - 1) // bins + 1):
        bound = max(bound, sum(ordered[k * bins - k:k * bins + 1]))
        if k == 8:   # further ones are below the mean for any real weights
            break
    return bound


def over(placement, profiles, settings=Settings()):
    """Sentences on every hard limit a placement breaks; none: it may be used."""
    rules = {key: Rules(profile) for key, profile in profiles.items()}
    problems, open_, streams, places = [], {}, {}, addresses(profiles, settings)
    for connection in placement.connections:
        key, place = (connection.venue, connection.endpoint), (connection.venue, connection.endpoint, connection.line)
        address = places[place]
        open_[address] = open_.get(address, 0) + 1
        streams[address] = streams.get(address, 0) + len(connection.streams)
        fill = Fill(connection.id, connection.worker, place, rules[key])
        for stream in connection.streams:
            item = item_of(stream, rules[key], NoLoad)
            if not fill.takes(item):
                problems.append(f"connection {connection.id} of {key[0]}/{key[1]} is over its limits at {stream.wire}")
                break
            fill.add(item)
    return problems + list(_over(open_, streams))
