"""Which instrument lives on which worker, and which stream on which connection. A pure, deterministic function.

    place(wanted, profiles, workers, current, limits) → Placement

An instrument goes to one worker with all its streams. A stream goes to a connection of that worker, on its endpoint and
its line, where it fits under the profile; what fits where it is now stays there. Connections are filled evenly. What
fits nowhere is a PlanError that names it.
"""
import dataclasses
import fnmatch

from feedhandler.capacity import profile as profiles_


class PlanError(ValueError):
    """Wanted streams that do not fit; .problems is one sentence each."""

    def __init__(self, problems):
        self.problems = problems
        super().__init__("\n".join(problems))


@dataclasses.dataclass(frozen=True, slots=True)
class Wanted:
    """One stream to place. (venue, endpoint, wire, line) is its key."""
    venue: str
    endpoint: str
    wire: str
    instrument: int
    symbol: str
    line: int = 0
    messages_per_s: float = 0.0   # measured; 0: not known yet

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


@dataclasses.dataclass(frozen=True, slots=True)
class Limits:
    """What the operator allows beside the venues' profiles."""
    messages_per_s: float = 20_000
    streams_per_worker: int = 2000
    available: tuple = ()   # workers that may take streams; empty: all


EMPTY = Placement({}, [])


def place(wanted, profiles, workers, current=EMPTY, limits=Limits()):
    """The Placement of `wanted` (Wanted) on `workers` processes; profiles is {(venue, endpoint): Profile}."""
    problems = _impossible(wanted, profiles, limits)
    if problems:
        raise PlanError(problems)
    usable = [worker for worker in limits.available or range(workers) if worker < workers]
    homes = _homes(wanted, profiles, usable, current, limits)
    connections = _pack(wanted, profiles, homes, current, limits)
    problems = over(Placement(homes, connections), profiles, limits)
    if problems:
        raise PlanError(problems)
    return Placement(homes, connections)


def _impossible(wanted, profiles, limits):
    """What no placement can help."""
    problems, seen = [], set()
    for stream in wanted:
        profile = profiles.get((stream.venue, stream.endpoint))
        if profile is None:
            problems.append(f"{stream.venue} has no endpoint {stream.endpoint!r} for {stream.wire}")
            continue
        if stream.key in seen:
            problems.append(f"{stream.venue}/{stream.endpoint}: {stream.wire} is wanted twice on line {stream.line}")
        seen.add(stream.key)
        if not profile.delivered(stream.wire):
            problems.append(f"{stream.venue}/{stream.endpoint} does not deliver {stream.wire}")
        if not _fits(Connection(0, 0, stream.venue, stream.endpoint, stream.line), stream, profile, limits):
            problems.append(f"{stream.venue}/{stream.endpoint}: {stream.wire} alone is above the limits of a connection")
    return problems


# -- instruments to workers ------------------------------------------------------------------------------------

def _homes(wanted, profiles, usable, current, limits):
    """{instrument: worker}: where it is now if that worker still counts, else the least loaded one that may take it."""
    load, size, venues = dict.fromkeys(usable, 0), {}, {}
    for stream in wanted:
        size[stream.instrument] = size.get(stream.instrument, 0) + 1
        venues[stream.instrument] = stream.venue
    allowed = {venue: _workers_of(venue, wanted, profiles, usable, current) for venue in sorted(set(venues.values()))}
    homes = {}
    for instrument in size:
        worker = current.workers.get(instrument)
        if worker in allowed[venues[instrument]] and load[worker] + size[instrument] <= limits.streams_per_worker:
            homes[instrument] = worker
            load[worker] += size[instrument]
    for instrument in sorted(size.keys() - homes.keys(), key=lambda id: (-size[id], id)):
        homes[instrument] = min(allowed[venues[instrument]], key=lambda worker: (load[worker], worker))
        load[homes[instrument]] += size[instrument]
    return homes


def _workers_of(venue, wanted, profiles, usable, current):
    """Workers that may hold a venue's instruments: with few connections an address, not every worker can have its own."""
    lines = {}
    for stream in wanted:
        if stream.venue == venue:
            lines.setdefault(stream.endpoint, set()).add(stream.line)
    most = len(usable)
    for endpoint, of in lines.items():
        connections = profiles[venue, endpoint].connections_usable
        if connections is not None:
            most = min(most, max(1, connections // len(of)))
    instruments = {stream.instrument for stream in wanted if stream.venue == venue}
    held = {current.workers[instrument] for instrument in instruments if instrument in current.workers}
    return sorted(usable, key=lambda worker: (worker not in held, worker))[:most]


# -- streams to connections --------------------------------------------------------------------------------------

def _fits(connection, stream, profile, limits):
    """Whether a connection may take one more stream."""
    streams = connection.streams
    if profile.fill is not None and sum(map(profile.weight, _wires(streams))) + profile.weight(stream.wire) > profile.fill:
        return False
    chars = profile.max_args_chars_per_conn
    if chars is not None and sum(map(len, _wires(streams))) + len(stream.wire) > chars:
        return False
    for glob, most in profile.soft_by_channel:
        if _named(stream, glob) and sum(_named(other, glob) for other in streams) >= most:
            return False
    if any(_excluded(pair, stream, other) for pair in profile.exclusive for other in streams if other.symbol == stream.symbol):
        return False
    rate = min(limits.messages_per_s, profile.messages_per_s or limits.messages_per_s)
    return not streams or sum(other.messages_per_s for other in streams) + stream.messages_per_s <= rate


def _wires(streams):
    return (stream.wire for stream in streams)


def _named(stream, glob):
    return fnmatch.fnmatchcase(profiles_.channel_of(stream.wire), glob)


def _excluded(pair, stream, other):
    return (_named(stream, pair[0]) and _named(other, pair[1])) or (_named(stream, pair[1]) and _named(other, pair[0]))


def _pack(wanted, profiles, homes, current, limits):
    """Connections with all streams on them, ids of kept ones unchanged."""
    before = {stream.key: connection for connection in current.connections for stream in connection.streams}
    kept, waiting = {}, []
    for stream in wanted:
        old = before.get(stream.key)
        if old is not None and old.worker == homes[stream.instrument]:
            new = kept.setdefault(old.id, Connection(old.id, old.worker, old.venue, old.endpoint, old.line))
            if _fits(new, stream, profiles[stream.venue, stream.endpoint], limits):
                new.streams.append(stream)
                continue
        waiting.append(stream)
    connections = [connection for connection in kept.values() if connection.streams]
    next_id = max([connection.id for connection in current.connections], default=0) + 1
    for group in _groups(waiting, homes):
        next_id = _fill(connections, group, homes, profiles, limits, next_id)
    return sorted(connections, key=lambda connection: connection.id)


def _groups(waiting, homes):
    groups = {}
    for stream in waiting:
        groups.setdefault((homes[stream.instrument], stream.venue, stream.endpoint, stream.line), []).append(stream)
    return groups.values()


def _fill(connections, group, homes, profiles, limits, next_id):
    """Place one worker's streams of one endpoint and line: each on the emptiest connection that takes it."""
    first = group[0]
    profile, worker = profiles[first.venue, first.endpoint], homes[first.instrument]
    mine = [connection for connection in connections
            if (connection.worker, connection.venue, connection.endpoint, connection.line)
            == (worker, first.venue, first.endpoint, first.line)]
    rooms = (len(group) + sum(len(connection.streams) for connection in mine)) / (profile.fill or len(group) + 1)
    for _ in range(int(-(-rooms // 1)) - len(mine)):
        mine.append(Connection(next_id, worker, first.venue, first.endpoint, first.line))
        connections.append(mine[-1])
        next_id += 1
    for stream in group:
        home = next((connection for connection in sorted(mine, key=lambda connection: (len(connection.streams), connection.id))
                     if _fits(connection, stream, profile, limits)), None)
        if home is None:
            home = Connection(next_id, worker, first.venue, first.endpoint, first.line)
            mine.append(home)
            connections.append(home)
            next_id += 1
        home.streams.append(stream)
    connections[:] = [connection for connection in connections if connection.streams]
    return next_id


# -- judging a placement -------------------------------------------------------------------------------------------

def over(placement, profiles, limits=Limits()):
    """Sentences on every limit a placement breaks; none: it may be used."""
    problems, open_, streams, on_worker = [], {}, {}, {}
    for connection in placement.connections:
        key = connection.venue, connection.endpoint
        open_[key] = open_.get(key, 0) + 1
        streams[key] = streams.get(key, 0) + len(connection.streams)
        on_worker[connection.worker] = on_worker.get(connection.worker, 0) + len(connection.streams)
        trial = Connection(0, 0, *key, connection.line)
        for stream in connection.streams:
            if not _fits(trial, stream, profiles[key], limits):
                problems.append(f"connection {connection.id} of {key[0]}/{key[1]} is over its limits at {stream.wire}")
                break
            trial.streams.append(stream)
    for key in open_:
        for count, most, noun in ((open_[key], profiles[key].connections_usable, "connections"),
                                  (streams[key], profiles[key].streams_usable, "streams")):
            if most is not None and count > most:
                problems.append(f"{key[0]}/{key[1]} needs {count} {noun}, this address may hold {most} "
                                f"({profiles_.USE_PERCENT} % of the documented limit); subscribe fewer symbols or channels there")
    problems += [f"worker {worker} would hold {count} streams, the target is {limits.streams_per_worker}; raise instance.workers or "
                 f"load.streams_per_worker" for worker, count in sorted(on_worker.items()) if count > limits.streams_per_worker]
    return problems
