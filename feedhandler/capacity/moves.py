"""Moves of streams that flow: when each may start, what is said to whom, and what becomes of it when somebody dies.

Pure: events and a clock in (seconds, of one that does not run backwards), actions out of take(). The placement is the
truth of where things are *after* a move; a move in flight stands beside it, and every limit counts both of its halves.

    between connections    queued → meeting → done                                    (or planned back)
    between workers        queued → preparing → letting go → taking over → done       (or given back)
    owner dead, standby    taking over → done                                         (or its successor begins anew, with a gap)

Requests to workers are idempotent. saved() is to be kept before actions are carried
out; a successor that restores it goes on, asking again. After LetGo was sent the instrument has exactly one owner at any
moment: it is given back or taken over by a request that the other side answers, or by the death of that side.
"""
import collections
import dataclasses
import typing

from feedhandler.capacity.limits import STANDBY, Fill, NoLoad, Rules, addresses, item_of, place_of
from feedhandler.capacity.order import ADD, DROP, MOVE
from feedhandler.capacity.plan import Connection, Placement, Settings, Wanted

FLYING_MAX = 16          # moves in flight
QUEUE_MAX = 100_000      # and waiting
PREPARE_S = 30.0         # from a move's start until the other side is ready
MEET_S = 40.0            # … until the other connection has met the stream; the worker itself gives up after 30
LET_GO_S = 5.0           # the old owner has so long to reach what the new one holds
LET_GO_GRACE_S = 3.0     # and so much longer to answer
ANSWER_S = 20.0          # who does not answer for so long, and was asked all the time, is replaced
HEAD_WAIT_S = 60.0       # the first in the queue waits so long for what it needs, then it is refused
LEAVE_S = 2.0            # a stream that was told to go counts for so long: others' subscriptions may be faster than its end
RESET_S = 1.0            # an instrument that nobody would take is held by nobody for so long, so that its owner begins anew

TAKE = "take"            # the kind of a step that gives a dead worker's instrument to its standby
QUEUED, MEETING, PREPARING, LETTING, TAKING, RETURNING, RESETTING, DONE = (
    "queued", "meeting", "preparing", "letting go", "taking over", "giving back", "beginning anew", "done")
UNREADY = frozenset(("PENDING", "SUBSCRIBING", "SYNCING", "GAP", "STALE", "REJECTED", "DOWN"))


# -- what is to be done ----------------------------------------------------------------------------------------------

class LetGo(typing.NamedTuple):
    worker: int
    instrument: int
    to_worker: int
    floors: dict
    quiet: list
    deadline_s: float


class TakeOver(typing.NamedTuple):
    """from_worker may be the worker itself: it takes back what it let go of."""
    worker: int
    instrument: int
    from_worker: int
    handover: dict | None


class Shard(typing.NamedTuple):
    """This worker's Assign has changed: it is made of shard()."""
    worker: int


class Ask(typing.NamedTuple):
    """This worker holds the instrument in private: it says Ready of it again."""
    worker: int
    instrument: int


class Rotate(typing.NamedTuple):
    """There was no room to roll this connection over: it is closed and reopened."""
    worker: int
    connection: int


class Replace(typing.NamedTuple):
    """This worker was asked and asked again and does not answer: kill it, its successor is whole."""
    worker: int
    reason: str


class Promoted(typing.NamedTuple):
    """The standby's streams of an instrument are the owner's now: pairs of keys, (the owner's, the standby's before)."""
    instrument: int
    pairs: list


class Replan(typing.NamedTuple):
    """Something is wanted that the placement does not have: plan again."""
    reason: str


class Finished(typing.NamedTuple):
    step: object
    ok: bool
    reason: str


@dataclasses.dataclass(slots=True)
class Step:
    """One move. streams: [key, id of the connection it leaves or 0, id of the one it joins]; 0 there: chosen when it starts."""
    number: int
    job: int
    kind: str
    streams: list
    reason: str
    source: int | None               # worker it leaves, and joins
    target: int | None
    wants: tuple = ()                # of Wanted, where kind is ADD
    fresh: bool = False              # all join one connection that is opened for them; without room: Rotate(the one they leave)
    phase: str = QUEUED
    instrument: int | None = None    # of a move between workers, or of a take
    promotes: bool = False           # the target is its standby already
    floors: dict = dataclasses.field(default_factory=dict)
    quiet: list = dataclasses.field(default_factory=list)
    handover: dict | None = None
    from_worker: int | None = None   # in the TakeOver that was said; None: none was
    source_gone: bool = False        # that worker died, or holds nothing of it: nothing of the step is assigned there
    target_gone: bool = False
    waiting: set = dataclasses.field(default_factory=set)    # keys that have not met yet
    failed: dict = dataclasses.field(default_factory=dict)   # key → why it did not
    said: str = ""                   # why it goes back
    since_s: float = 0.0
    replaced: bool = False           # the one who does not answer was told of

    @property
    def asked(self):
        """The worker whose answer is awaited, or None."""
        return {LETTING: self.source, TAKING: self.target, RETURNING: self.source}.get(self.phase)

    @property
    def is_across(self):
        return self.kind == MOVE and self.source != self.target

    @property
    def is_standby(self):
        return self.streams[0][0][3] == STANDBY


# -- limits, both halves counted -------------------------------------------------------------------------------------

class Room:
    """What is subscribed at this moment, wherever, against the limits of connections and addresses."""

    def __init__(self):
        self.rules, self.addresses = {}, {}   # (venue, endpoint) → limits.Rules; (venue, endpoint, line) → limits.Address
        self.live = {}                   # connection id → Fill
        self.open, self.streams = collections.Counter(), collections.Counter()   # by an Address' name

    def join(self, want, id, worker, force=False):
        """"" and the stream is on the connection, or why it may not be. force: it is there already."""
        place = place_of(want)
        fill, rules = self.live.get(id), self.rules[place[:2]]
        address = self.addresses[fill.place if fill else place]
        item, name = item_of(want, rules, NoLoad), address.name
        if not force:
            if fill is not None and (fill.worker, fill.place) != (worker, place):
                return f"connection {id} is another one by now"
            if address.streams is not None and self.streams[name] >= address.streams:
                return f"{name} may hold {address.streams} streams at once, both ends of a move counted"
            if fill is None and address.connections is not None and self.open[name] >= address.connections:
                return f"{name} may hold {address.connections} connections open at once"
            if fill is not None and not fill.takes(item):
                return f"connection {id} is full"
        if fill is None:
            fill = self.live[id] = Fill(id, worker, place, rules)
            self.open[name] += 1
        if want.key not in fill.items:
            fill.add(item)
            self.streams[name] += 1
        return ""

    def leave(self, key, id):
        fill = self.live.get(id)
        if fill is None or key not in fill.items:
            return
        fill.remove(fill.items[key])
        name = self.addresses[fill.place].name
        self.streams[name] -= 1
        if not fill.items:
            del self.live[id]
            self.open[name] -= 1


# -- the machine -----------------------------------------------------------------------------------------------------

class Mover:
    """Owns the placement: it changes here and nowhere else."""

    def __init__(self, profiles, placement=None, settings=Settings()):
        self.queue = collections.deque()
        self.flying = {}                 # number → Step
        self.busy = {}                   # instrument → Step: at most one
        self.up = set()                  # workers that listen
        self.ready = set()               # instruments whose standby said that it could take over
        self.unready = set()             # … and those whose standby cannot; others are asked
        self.paused = ""                 # why nothing is started
        self.quiet_s = 0.0               # nor is anything before this time: after a restart what is leaving is not known
        self.number = 0
        self.actions = []
        self.reset(profiles, placement or Placement({}, []), settings)

    def reset(self, profiles, placement, settings=Settings()):
        """Another placement, of which nothing is in flight. The profiles may have changed with it."""
        self.placement, self.room = placement, Room()
        self.know(profiles, settings)
        self.leaving = {}                # (key, connection id) → when it counts no more
        self.ending = {}                 # connection that is replaced as a whole → the one that follows it, which is joined instead
        self.connections = {connection.id: connection for connection in placement.connections}
        self.home, self.wants = {}, {}   # key → connection id, Wanted
        self.held = collections.defaultdict(dict)   # instrument → its keys
        for connection in placement.connections:
            for want in connection.streams:
                self.home[want.key], self.wants[want.key] = connection.id, want
                self.held[want.instrument][want.key] = None
                self.room.join(want, connection.id, connection.worker, force=True)

    def know(self, profiles, settings=Settings()):
        """The profiles of now: venues may have come, and others may hold more of an address."""
        self.room.rules.update((key, Rules(profile)) for key, profile in profiles.items())
        self.room.addresses.update(addresses(profiles, settings))

    def take(self):
        """What is to be done, in order; a shard once."""
        actions, self.actions, said = self.actions, [], set()
        for action in actions:
            if not isinstance(action, Shard) or action not in said:
                yield action
            if isinstance(action, Shard):
                said.add(action)

    def act(self, action):
        self.actions.append(action)

    # -- what is wanted --------------------------------------------------------------------------------------------

    def add(self, job, kind, streams, reason, source, target, wants=(), fresh=False, urgent=False):
        """Queue one step; its number. OverflowError: there are too many."""
        if len(self.queue) >= QUEUE_MAX:
            raise OverflowError(f"{QUEUE_MAX:,} moves wait already")
        self.number += 1
        step = Step(self.number, job, kind, [list(stream) for stream in streams], reason, source, target, tuple(wants), fresh)
        (self.queue.appendleft if urgent else self.queue.append)(step)
        return step.number

    def enqueue(self, job, moves, wants):
        """The moves of a Plan, in order; wants: {key: Wanted} of the plan's placement."""
        promoted = self.promoted_by(moves)
        for move in moves:
            streams = move.streams
            if move.kind == DROP:
                streams = [stream for stream in streams if stream[0] not in promoted]
            if streams:
                self.add(job, move.kind, streams, move.reason, move.worker_from, move.worker_to,
                         [wants[key] for key, source, target in streams if target and not source] if move.kind == ADD else ())

    def promoted_by(self, moves):
        """Keys of standbys' streams that these moves make the owner's: a plan that drops them, where one worker is left for both, would
        have their worker subscribe them anew."""
        going = {self.wants[move.streams[0][0]].instrument: move.worker_to for move in moves
                 if move.kind == MOVE and move.worker_from != move.worker_to and move.streams[0][0] in self.wants}
        return {key for key, want in self.wants.items() if want.line == STANDBY and want.instrument in going
                and self.placement.standbys.get(want.instrument) == going[want.instrument]}

    def overtake(self, reason="overtaken by a newer plan"):
        """A new plan knows better than the steps of older ones that have not started."""
        self.unqueue([step for step in self.queue if all(target or step.kind == DROP for _, _, target in step.streams)], reason)

    def cancel(self, job, reason):
        """What of a job has not started never will."""
        self.unqueue([step for step in self.queue if step.job == job], reason)

    def unqueue(self, steps, reason):
        gone = {step.number for step in steps}
        self.queue = collections.deque(step for step in self.queue if step.number not in gone)
        for step in steps:
            self.act(Finished(step, False, reason))

    # -- the placement ---------------------------------------------------------------------------------------------

    def connection(self, id, worker, want):
        """The connection of that id, in the placement from now on."""
        found = self.connections.get(id)
        if found is None:
            found = self.connections[id] = Connection(id, worker, *place_of(want))
            self.placement.connections.append(found)
            self.placement.connections.sort(key=lambda connection: connection.id)
        return found

    def tidy(self, id):
        """An empty connection that nothing is moving to is closed."""
        found = self.connections.get(id)
        if found is not None and not found.streams and id not in self.room.live:
            self.ending.pop(id, None)
            del self.connections[id]
            self.placement.connections.remove(found)

    def leave(self, now, key, id):
        """A stream is told to leave a connection; its place is free when it is sure to have gone."""
        self.leaving[key, id] = now + LEAVE_S

    def left(self, now):
        for (key, id), due in list(self.leaving.items()):
            if due <= now:
                del self.leaving[key, id]
                self.room.leave(key, id)
                self.tidy(id)

    def put(self, want, id, worker):
        self.connection(id, worker, want).streams.append(want)
        self.home[want.key], self.wants[want.key] = id, want
        self.held[want.instrument][want.key] = None
        (self.placement.standbys if want.line == STANDBY else self.placement.workers)[want.instrument] = worker

    def lift(self, key):
        """A stream out of the placement; its Wanted."""
        want, id = self.wants.pop(key), self.home.pop(key)
        self.connections[id].streams.remove(want)
        del self.held[want.instrument][key]
        return want

    def forget_unit(self, want):
        """After a stream has gone for good: who owns nothing of an instrument does not own it."""
        table = self.placement.standbys if want.line == STANDBY else self.placement.workers
        if not any(other.instrument == want.instrument and (other.line == STANDBY) == (want.line == STANDBY)
                   for other in self.of_instrument(want.instrument)):
            table.pop(want.instrument, None)
            if want.line == STANDBY:
                self.ready.discard(want.instrument)
                self.unready.discard(want.instrument)

    def of_instrument(self, instrument):
        """Wanted streams of one, the standby's too."""
        return [self.wants[key] for key in self.held.get(instrument, ())]

    def fresh_id(self):
        queued = [target for step in self.queue for _, _, target in step.streams]
        return max([0, *self.connections, *self.room.live, *queued]) + 1

    def shard(self, worker):
        """[(Connection, [(Wanted, role, backed)])] of what this worker is to hold now, by id."""
        extra, gone = {}, set()
        for step in self.flying.values():
            if step.source == worker and step.source_gone:
                gone.update(key for key, _, _ in step.streams)
            if step.is_across and step.target == worker and not step.target_gone and not step.promotes:
                for key, _, target in step.streams:
                    extra.setdefault(target, []).append(self.wants[key])
        found = []
        for connection in self.placement.connections:
            if connection.worker != worker:
                continue
            streams = [(want, "standby" if want.line == STANDBY else "", want.instrument in self.placement.standbys)
                       for want in connection.streams if want.key not in gone]
            streams += [(want, "standby" if want.line == STANDBY else "incoming", False) for want in extra.get(connection.id, ())]
            if streams:
                found.append((connection, streams))
        return found

    # -- starting --------------------------------------------------------------------------------------------------

    def pump(self, now):
        """Start what may start, in order: who cannot holds up those behind, who were planned to come after."""
        while self.queue and not self.paused and now >= self.quiet_s and len(self.flying) < FLYING_MAX:
            step = self.queue[0]
            self.renew(step)
            if not step.streams:
                self.queue.popleft()
                self.act(Finished(step, True, "it is there already"))
                continue
            refused = self.refused(step)
            waits = "" if refused else self.waits(step)
            if not refused and not waits:
                refused, waits = self.start(step, now)
                if refused and step.fresh:
                    self.act(Rotate(step.source, step.streams[0][1]))
                    refused += "; it is closed and reopened instead"
            if not refused and not waits:
                self.queue.popleft()
                self.roll_rest(step)
                continue
            step.since_s = step.since_s or now
            if waits and now - step.since_s < HEAD_WAIT_S:
                return
            self.queue.popleft()
            reason = refused or f"it waited {HEAD_WAIT_S:g} s: {waits}"
            self.act(Finished(step, False, reason))
            if step.kind != MOVE:
                self.act(Replan(reason))     # what is wanted is not what there is

    def roll_rest(self, step):
        """What could not leave a connection that is replaced, as another move of it was in flight, leaves as soon as that has ended."""
        rest = self.connections[step.streams[0][1]].streams if step.fresh else ()
        if rest:
            self.add(step.job, MOVE, [(want.key, step.streams[0][1], 0) for want in rest], step.reason, step.source, step.target, fresh=True, urgent=True)

    def renew(self, step):
        """A step that is not of a plan takes the streams where they are now; whatever was to join a connection that is being
        replaced joins the one that follows it."""
        for stream in step.streams:
            while stream[2] in self.ending:
                stream[2] = self.ending[stream[2]]
        if step.kind == ADD:
            step.wants = tuple(want for want in step.wants if want.key not in self.home)
            step.streams = [stream for stream in step.streams if stream[0] not in self.home]
        if all(target for _, _, target in step.streams):
            return
        if step.fresh:
            found = self.connections.get(step.streams[0][1])
            streams = found.streams if found else []     # those that are on another way follow by themselves
            keys = [want.key for want in streams if want.instrument not in self.busy] or [want.key for want in streams]
        elif step.is_across:             # the instrument as a whole: it may have got a line since
            instruments = {self.wants[key].instrument for key, _, _ in step.streams if key in self.wants}
            keys = [want.key for instrument in instruments for want in self.of_instrument(instrument) if (want.line == STANDBY) == step.is_standby]
        else:
            keys = [key for key, _, _ in step.streams if key in self.home]
        if keys:
            step.streams = [[key, self.home[key], 0] for key in keys]
            step.source = self.connections[self.home[keys[0]]].worker
            step.target = step.source if step.fresh else step.target

    def refused(self, step):
        """"" or why a step can never start: the world has changed since it was planned."""
        for want in step.wants:
            homes, others = self.placement.workers, self.placement.standbys
            if want.line == STANDBY:
                homes, others = others, homes
            if homes.get(want.instrument, step.target) != step.target or others.get(want.instrument) == step.target:
                return f"the instrument of {want.wire} lives elsewhere by now"
        for key, source, target in step.streams:
            if step.kind != ADD and self.home.get(key) != source:
                return f"{key[2]} is not on connection {source} any more"
            if source == target or (not target and not step.fresh and step.source == step.target):
                return f"{key[2]} is there already"
        if step.kind == MOVE and step.source != self.connections[step.streams[0][1]].worker:
            return f"connection {step.streams[0][1]} is not on worker {step.source}"
        if step.is_across:
            instrument = self.wants[step.streams[0][0]].instrument
            if step.is_standby and self.placement.workers.get(instrument) == step.target:
                return f"worker {step.target} owns the instrument itself"
            others = {want.key for want in self.of_instrument(instrument) if (want.line == STANDBY) == step.is_standby}
            if others != {key for key, _, _ in step.streams}:
                return "an instrument moves between workers with all its streams"
        return ""

    def waits(self, step):
        """"" or what a step must wait for."""
        if self.leaving and not {key for key, _ in self.leaving}.isdisjoint(key for key, _, _ in step.streams):
            return "a stream of it has not left its last connection yet"
        for key, _, _ in step.streams:
            instrument = self.wants[key].instrument if key in self.wants else next(want.instrument for want in step.wants if want.key == key)
            if instrument in self.busy:
                return "another move of the instrument is in flight"
        if step.kind == MOVE:
            for worker in (step.source, step.target):
                if worker not in self.up:
                    return f"worker {worker} is down"
        return ""

    def start(self, step, now):
        """("", ""): it has started, or is done; else (why it never can, what it must wait for)."""
        if step.kind == DROP:
            for key, source, _ in step.streams:
                self.forget_unit(self.lift(key))
                self.leave(now, key, source)
            self.act(Shard(step.source))
            self.end(step, True, step.reason)
            return "", ""
        step.promotes = step.is_across and not step.is_standby and self.placement.standbys.get(self.wants[step.streams[0][0]].instrument) == step.target
        said = self.complete(step) if step.promotes else self.make(step)
        if said:
            return ("", said) if self.flying or self.leaving else (said, "")
        if step.kind == ADD:
            for want, (_, _, target) in zip(step.wants, step.streams):
                self.put(want, target, step.target)
            self.act(Shard(step.target))
            self.tell_owners(step)
            self.end(step, True, step.reason)
        elif step.is_across:
            step.instrument = self.wants[step.streams[0][0]].instrument
            for key, _, target in () if step.promotes else step.streams:
                self.connection(target, step.target, self.wants[key])        # its id is taken from now on
            self.fly(step, PREPARING, now)
            self.act(Ask(step.target, step.instrument) if step.promotes else Shard(step.target))
        else:
            self.end_connections(step)
            for key, _, target in step.streams:
                self.put(self.lift(key), target, step.target)
            step.waiting = {key for key, _, _ in step.streams}
            self.fly(step, MEETING, now)
            self.act(Shard(step.target))
        return "", ""

    def tell_owners(self, step):
        """Whose standby has come writes more into its rows."""
        instruments = {want.instrument for want in step.wants if want.line == STANDBY}
        for worker in sorted({self.placement.workers[instrument] for instrument in instruments if instrument in self.placement.workers}):
            self.act(Shard(worker))

    def end_connections(self, step):
        """What a fresh connection is opened for leaves one that ends."""
        if step.fresh:
            self.ending.update({source: target for _, source, target in step.streams})

    def fly(self, step, phase, now):
        step.phase, step.since_s = phase, now
        self.flying[step.number] = step
        for key, _, _ in step.streams:
            self.busy[self.wants[key].instrument] = step

    def make(self, step):
        """Subscribe a step's streams where they go, on paper; "" or why not, then nothing was done."""
        wants = {want.key: want for want in step.wants} or self.wants
        made, fresh, kept = [], {}, [list(stream) for stream in step.streams]
        for stream in step.streams:
            want = wants[stream[0]]
            if not stream[2]:
                place = None if step.fresh else place_of(want)
                found = self.roomiest(want, step.target, stream[1]) if place else None
                if not found and place not in fresh:
                    fresh[place] = self.fresh_id()
                stream[2] = found or fresh[place]
            said = self.room.join(want, stream[2], step.target)
            if said:
                for key, id in made:
                    self.room.leave(key, id)        # nobody was told
                step.streams = kept
                return said
            made.append((want.key, stream[2]))
        return ""

    def lacks(self, instrument):
        """What the owner of an instrument has that its standby has not: as with steps of a plan that another one overtook."""
        held = self.of_instrument(instrument)
        theirs = {want.key[:3] for want in held if want.line == STANDBY}
        return [want for want in held if want.line == 0 and want.key[:3] not in theirs]

    def complete(self, step):
        """The standby that takes over gets what it lacks; "" or why not, then nothing was done."""
        made, fresh, instrument = [], {}, self.wants[step.streams[0][0]].instrument
        for want in self.lacks(instrument):
            other = dataclasses.replace(want, line=STANDBY)
            id = self.roomiest(other, step.target, 0) or fresh.setdefault(place_of(other), self.fresh_id())
            said = self.room.join(other, id, step.target)
            if said:
                for one, there in made:
                    self.room.leave(one.key, there)
                return said
            made.append((other, id))
        for other, id in made:
            self.put(other, id, step.target)
        if made:
            self.known(instrument, False)
            self.act(Shard(step.target))
        return ""

    def roomiest(self, want, worker, source):
        """The connection of a worker with the fewest streams that takes one more like this, or None."""
        place = place_of(want)
        item = item_of(want, self.room.rules[place[:2]], NoLoad)
        found = [fill for fill in self.room.live.values() if fill.worker == worker and fill.place == place
                 and fill.id != source and fill.id not in self.ending and fill.takes(item)]
        return min(found, key=lambda fill: (len(fill.items), fill.id)).id if found else None

    # -- ending ----------------------------------------------------------------------------------------------------

    def end(self, step, ok, reason):
        if step.number in self.flying:
            del self.flying[step.number]
            for instrument in [instrument for instrument, other in self.busy.items() if other is step]:
                del self.busy[instrument]
        step.phase, step.handover = DONE, None
        self.act(Finished(step, ok, reason))

    def commit(self, step, now):
        """A move between workers has arrived."""
        if step.promotes or step.kind == TAKE:
            self.promote(now, step)
        else:
            for key, source, target in step.streams:
                self.put(self.lift(key), target, step.target)
                self.leave(now, key, source)
        self.act(Shard(step.source))
        self.act(Shard(step.target))
        self.end(step, True, step.reason)

    def back(self, now, step, said):
        """A move between workers has ended where it began: what was prepared is let go."""
        for key, source, target in step.streams:
            if target and not step.promotes and step.kind == MOVE:
                self.leave(now, key, target)
        self.act(Shard(step.target))
        if step.source_gone:
            self.act(Shard(step.source))
        self.end(step, False, said)

    def promote(self, now, step):
        """The standby's streams are the owner's from now on; the owner's are gone, and planned anew where they are missed."""
        instrument, pairs = step.instrument, []
        worker = self.placement.standbys.pop(instrument)
        theirs = [want for want in self.of_instrument(instrument) if want.line != STANDBY]
        ours = [want for want in self.of_instrument(instrument) if want.line == STANDBY]
        for want in theirs:
            id = self.home[want.key]
            self.lift(want.key)
            self.leave(now, want.key, id)
        for want in ours:
            id = self.home[want.key]
            self.lift(want.key)
            self.room.leave(want.key, id)
            fresh = dataclasses.replace(want, line=0)
            self.put(fresh, id, worker)
            self.room.join(fresh, id, worker, force=True)
            pairs.append((fresh.key, want.key))
        self.placement.workers[instrument] = worker
        self.ready.discard(instrument)
        self.act(Promoted(instrument, pairs))
        self.act(Replan(f"instrument {instrument} needs another standby"))

    # -- what workers say ------------------------------------------------------------------------------------------

    def heard_ready(self, now, worker, instrument, floors, quiet):
        step = self.busy.get(instrument)
        if not self.covers(step, worker, instrument, floors):
            return           # it says so again when more of it came there
        if step is not None and step.phase == PREPARING and step.target == worker and step.is_across:
            if step.is_standby:
                self.commit(step, now)
                self.known(instrument, True)
                return
            step.floors, step.quiet, step.phase, step.since_s = dict(floors), list(quiet), LETTING, now
            self.ask(step)
        elif self.placement.standbys.get(instrument) == worker:
            self.known(instrument, True)

    def covers(self, step, worker, instrument, floors):
        """Whether a worker that says that it is ready has all channels of the instrument, and not only those that came there first."""
        wants = self.of_instrument(instrument)
        if step is not None and step.is_across and step.target == worker and not step.promotes:
            wants = [self.wants[key] for key, _, _ in step.streams]
        elif self.lacks(instrument):
            return False
        return {want.channel for want in wants if want.line in (0, STANDBY)} <= set(floors)

    def known(self, instrument, is_ready):
        (self.ready.add if is_ready else self.ready.discard)(instrument)
        (self.unready.discard if is_ready else self.unready.add)(instrument)

    def heard_let_gone(self, now, worker, instrument, handover, ok, reason):
        step = self.busy.get(instrument)
        if step is not None and step.phase == RETURNING and step.from_worker == step.source == worker and ok:
            step.handover = handover         # it comes late, and helps to take it back
        if ok and (step is None or step.phase in (MEETING, PREPARING)) and self.placement.workers.get(instrument) == worker:
            self.act(TakeOver(worker, instrument, worker, handover))    # asked for by a supervisor that died, granted after we were refused
        if step is None or step.phase != LETTING or step.source != worker:
            return           # of a request that was overtaken
        if not ok:
            self.back(now, step, reason or f"worker {worker} did not let go")
            return
        step.handover = handover
        self.taking(step, now, step.source)

    def taking(self, step, now, from_worker):
        step.phase, step.since_s, step.from_worker, step.replaced = TAKING, now, from_worker, False
        self.ask(step)

    def give_back(self, step, now, from_worker, said):
        """To the old owner, who stayed in private."""
        step.phase, step.since_s, step.from_worker, step.said, step.replaced = RETURNING, now, from_worker, said, False
        self.ask(step)

    def heard_taken_over(self, now, worker, instrument, ok, reason):
        step = self.busy.get(instrument)
        if step is None:
            return
        if step.phase == TAKING and step.target == worker:
            if ok:
                self.commit(step, now)
            elif step.source_gone:
                self.back(now, step, f"worker {worker} could not take over: {reason}; worker {step.source}'s successor begins anew, with a gap")
            else:
                self.give_back(step, now, step.source, f"worker {worker} could not take over: {reason}")
        elif step.phase == RETURNING and step.source == worker:
            if ok:
                self.back(now, step, step.said)
            else:
                step.said += f"; worker {worker} could not take it back: {reason}; it begins anew, with a gap"
                step.phase, step.since_s, step.source_gone, step.target_gone = RESETTING, now, True, True
                self.act(Shard(step.source))
                self.act(Shard(step.target))

    def heard_moved(self, now, worker, key, id, ok, reason):
        """A stream that lingered has met its new connection, or could not."""
        step = next((step for step in self.flying.values() if step.phase == MEETING and step.target == worker
                     and any(other == key and target == id for other, _, target in step.streams)), None)
        if step is None or key not in step.waiting:
            return
        step.waiting.discard(key)
        if ok:
            self.met(now, step, key)
        else:
            step.failed[key] = reason
        if not step.waiting:
            self.met_all(now, step)

    def heard_lingering(self, now, worker, keys):
        """What lingers of a worker that told a supervisor before us of its moves; all else has met its new connection."""
        for step in [step for step in self.flying.values() if step.phase == MEETING and step.target == worker]:
            for key in step.waiting - keys:
                self.heard_moved(now, worker, key, self.home[key], True, "")

    def met(self, now, step, key):
        self.leave(now, key, next(source for other, source, _ in step.streams if other == key))

    def met_all(self, now, step):
        """Every stream has met its new connection or failed; those that failed go back, where they still live."""
        for key, source, target in step.streams:
            if key in step.failed:
                self.put(self.lift(key), source, step.source)
                self.leave(now, key, target)
                self.ending.pop(source, None)
        if step.failed:
            self.act(Shard(step.target))
        said = next(iter(step.failed.values()), "")
        self.end(step, not step.failed, f"{len(step.failed)} of {len(step.streams)} streams stay where they were: {said}" if step.failed else step.reason)

    def heard_stream(self, now, worker, key, state, reason):
        """A stream's state, told by any worker: the private half of a move, or a standby, may be refused or lost."""
        want = self.wants.get(key)
        if want is None:
            return
        step = self.busy.get(want.instrument)
        if step is not None and state == "REJECTED" and step.phase == PREPARING and step.target == worker and step.is_across:
            if step.promotes == (key[3] == STANDBY) or step.is_standby:
                self.back(now, step, f"worker {worker}: {key[2]} was rejected: {reason}")
        if key[3] == STANDBY and state in UNREADY and self.placement.standbys.get(want.instrument) == worker:
            self.known(want.instrument, False)

    # -- life and death of workers -----------------------------------------------------------------------------------

    def came_up(self, now, worker):
        """It listens: what was said before is lost, or was answered to a supervisor that died."""
        self.up.add(worker)
        for step in self.flying.values():
            if worker == step.asked:
                self.ask(step)
        self.pump(now)

    def went_down(self, now, worker):
        """What was in flight there goes back or on; what it owned goes to the standbys that are ready."""
        self.up.discard(worker)
        for step in list(self.flying.values()):
            if worker in (step.source, step.target):
                self.half_died(step, now, worker)
        for instrument in [instrument for instrument, standby in self.placement.standbys.items() if standby == worker]:
            self.known(instrument, False)
        owned = [instrument for instrument, owner in self.placement.workers.items() if owner == worker]
        takes = {}
        for instrument in owned:
            if self.placement.standbys.get(instrument) in self.up and instrument not in self.unready and not self.lacks(instrument):
                takes[instrument] = []
        for connection in self.placement.connections if takes else ():
            for want in connection.streams if connection.worker == worker else ():
                if want.instrument in takes and want.line != STANDBY:
                    takes[want.instrument].append([want.key, connection.id, 0])
        for instrument, streams in takes.items():
            self.take_for_dead(now, worker, instrument, streams)
        if takes:
            self.act(Shard(worker))      # its successor is not to begin what goes to the standbys
        self.actions.sort(key=lambda action: not isinstance(action, TakeOver))   # stable: the others stay in order

    def take_for_dead(self, now, worker, instrument, streams):
        step = self.busy.get(instrument)
        if step is not None and step.is_across and step.is_standby:
            self.back(now, step, f"worker {worker}, its owner, died")
        elif step is not None and step.phase == MEETING:     # of the standby's own streams: they stay where they deliver
            step.failed.update(dict.fromkeys(step.waiting, f"worker {worker}, the owner of instrument {instrument}, died"))
            step.waiting.clear()
            self.met_all(now, step)
        if instrument in self.busy:
            return
        self.number += 1
        step = Step(self.number, 0, TAKE, streams, f"worker {worker} died, its standby takes over", worker, self.placement.standbys[instrument])
        step.instrument, step.source_gone = instrument, True
        self.fly(step, TAKING, now)
        self.taking(step, now, worker)

    def half_died(self, step, now, worker):
        """One of the two workers of a step died."""
        said = f"worker {worker} died"
        if step.phase == MEETING:
            for key in list(step.waiting):
                self.met(now, step, key)
            step.waiting.clear()
            for key in step.failed:
                self.met(now, step, key)
            step.failed.clear()
            self.end(step, True, f"{said}; its successor begins on the new connection")
        elif step.phase == PREPARING:
            if not (step.is_standby and worker == step.source):
                self.back(now, step, said)
        elif worker == step.source:
            step.source_gone = True
            if step.phase == LETTING:
                self.taking(step, now, worker)
            elif step.phase in (RETURNING, RESETTING):
                self.back(now, step, f"{step.said}; {said}, its successor begins anew, with a gap")
        elif step.phase == LETTING:
            step.target_gone = True
            self.give_back(step, now, step.source if step.from_worker is None else worker, said)
        elif step.phase == TAKING and step.source_gone:
            self.back(now, step, f"{said}, and worker {step.source} before; that one's successor begins anew, with a gap")
        elif step.phase == TAKING:
            step.target_gone, step.handover = True, None
            self.give_back(step, now, worker, said)

    # -- time ------------------------------------------------------------------------------------------------------

    def ask(self, step):
        """Say to a worker what the step waits for. Once: a second request could be granted after the first was refused."""
        if step.phase == LETTING:
            self.act(LetGo(step.source, step.instrument, step.target, step.floors, step.quiet, LET_GO_S))
        elif step.phase == TAKING:
            self.act(TakeOver(step.target, step.instrument, step.from_worker, None if step.source_gone else step.handover))
        elif step.phase == RETURNING:
            self.act(TakeOver(step.source, step.instrument, step.from_worker, step.handover))

    def tick(self, now):
        """Deadlines."""
        self.left(now)
        for step in list(self.flying.values()):
            waited = now - step.since_s
            if step.phase == MEETING and waited >= MEET_S:
                for key in step.waiting:     # who lingers says that it failed: these do not
                    self.met(now, step, key)
                step.waiting.clear()
                self.met_all(now, step)
            elif step.phase == PREPARING and waited >= PREPARE_S:
                self.back(now, step, f"worker {step.target} was not ready within {PREPARE_S:g} s")
            elif step.phase == LETTING and step.from_worker is None and waited >= LET_GO_S + LET_GO_GRACE_S:
                self.give_back(step, now, step.source, f"worker {step.source} did not let go within {LET_GO_S:g} s")
            elif step.phase == RESETTING and waited >= RESET_S:
                self.back(now, step, step.said)
            elif step.asked in self.up and waited >= ANSWER_S and not step.replaced:
                step.replaced = True
                self.act(Replace(step.asked, f"it did not answer for {ANSWER_S:g} s who owns instrument {step.instrument}"))
        self.pump(now)

    # -- over the death of a supervisor --------------------------------------------------------------------------------

    def saved(self):
        """As plain data. Hand-overs are not kept: who let go says the same again. Nor is which standby is ready: a dead owner's
        is asked to take over whether it is or not, as the supervisor that died may have done, unsaved."""
        return {"number": self.number, "steps": [_row(step) for step in (*self.flying.values(), *self.queue)]}

    def restore(self, document, now):
        """What saved() gave, beside the placement of the same moment. ValueError where it is damaged. Then say which workers
        are up, and which died."""
        try:
            self.number, self.quiet_s = int(document["number"]), now + LEAVE_S
            steps = [_step(row) for row in document["steps"]]
            for step in steps:
                self.again(step, now)
        except (TypeError, KeyError, ValueError, IndexError, AttributeError) as error:
            raise ValueError(f"the moves in flight are damaged: {error!r}") from None

    def again(self, step, now):
        """A step of a supervisor that died, in its place."""
        if step.phase == QUEUED:
            step.since_s = 0.0
            self.queue.append(step)
            return
        if step.phase == TAKING and not step.source_gone:
            step.phase = LETTING                     # the hand-over is told again
        for key, source, target in step.streams:
            want = self.wants[key]
            if step.kind == MOVE and not step.promotes:
                id, worker = (source, step.source) if step.phase == MEETING else (target, step.target)
                if step.phase != MEETING or key in step.waiting or key in step.failed:
                    self.room.join(want, id, worker, force=True)
                    self.connection(id, worker, want)
        self.end_connections(step)
        self.fly(step, step.phase, now)
        step.replaced = False


def _row(step):
    row = {field.name: getattr(step, field.name) for field in dataclasses.fields(Step)}
    row.update(handover=None, waiting=sorted(step.waiting), failed=list(step.failed.items()), wants=[list(dataclasses.astuple(want)) for want in step.wants],
               streams=[list(stream) for stream in step.streams])
    return row


def _step(row):
    """What _row() gave, also by way of JSON."""
    step = Step(**row)
    step.streams = [[tuple(key), source, target] for key, source, target in step.streams]
    step.waiting = {tuple(key) for key in step.waiting}
    step.failed = {tuple(key): said for key, said in step.failed}
    step.wants = tuple(Wanted(*fields) for fields in step.wants)
    return step
