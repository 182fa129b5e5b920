"""Moves in flight against a model of workers: whoever dies, whatever is late or lost, an instrument has one owner and every move ends.

What: capacity.moves.Mover with simulated workers, clock and network; workers and the supervisor die at any point.
Why: a hole in this logic is an instrument published by nobody, or by two.
Sizes: 3 workers, 8 instruments with up to 3 streams each, 120 simulated seconds of faults, then quiet until all is settled.
A failure means: the printed seed gives the same run again.
"""
import collections
import heapq
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feedhandler.capacity import plan
from feedhandler.capacity import moves
from feedhandler.capacity.limits import STANDBY
from feedhandler.capacity.moves import Ask, Finished, LetGo, Mover, Promoted, Replace, Replan, Rotate, Shard, TakeOver
from feedhandler.capacity.order import ADD, DROP, MOVE
from feedhandler.capacity.plan import Connection, Placement, Settings, Wanted
from feedhandler.capacity.profile import Profile

WORKERS, INSTRUMENTS, FILL, OPEN, STREAMS = 3, 8, 6, 20, 60
LINGER_S = 30.0   # a worker's own patience
RUNS, RUNS_LONG = 15, 1000


def profiles(open_=OPEN, fill=FILL, streams=STREAMS):
    return {("v", "e"): Profile.read({"venue": "v", "endpoint": "e", "conn": {"max_open": open_}, "sub": {"max_per_conn": fill, "max_per_ip": streams}})}


def want(instrument, channel="t", line=0):
    return Wanted("v", "e", f"{channel}{instrument}", instrument, f"S{instrument}", line, channel)


def wanted(standbys=True, lines=1):
    return [want(i, channel, line) for i in range(INSTRUMENTS) for channel in "tqb"[:1 + i % 3]
            for line in [*range(lines), *([STANDBY] if standbys and i % 2 else [])]]


def placed(streams=None, workers=WORKERS):
    return plan.plan(streams or wanted(), profiles(), settings=Settings(workers=workers)).placement


def snapshot(mover, placement):
    """As plan.json keeps it."""
    return json.dumps({"moves": mover.saved(), "workers": list(placement.workers.items()), "standbys": list(placement.standbys.items()),
                       "connections": [[c.id, c.worker, c.venue, c.endpoint, c.line, [[*w.key[:3], w.instrument, w.symbol, w.line, w.channel, w.kind] for w in c.streams]]
                                       for c in placement.connections]})


def revived(text, now):
    document = json.loads(text)
    placement = Placement(dict(document["workers"]), [Connection(*row[:5], [Wanted(*fields) for fields in row[5]]) for row in document["connections"]],
                          dict(document["standbys"]))
    mover = Mover(profiles(), placement)
    mover.restore(document["moves"], now)
    return mover


class Worker:
    """Contract B as far as a supervisor can see it."""

    def __init__(self, sim, number):
        self.sim, self.number = sim, number
        self.alive, self.life = True, 0
        self.clear()

    def clear(self):
        self.holds = {}          # instrument → "owned" | "private"
        self.on = {}             # key → connection
        self.lingers = {}        # key → connection it is still on
        self.handed = {}         # instrument → hand-over it gave
        self.refuses = set()     # private ones it could not take over
        self.inbox = collections.deque()
        self.due = 0.0

    def say(self, kind, *fields):
        self.sim.to_supervisor(self, kind, fields)

    def do_shard(self, connections):
        on, roles = {}, {}
        for connection, streams in connections:
            for one, role, _ in streams:
                on[one.key] = connection.id
                roles[one.instrument] = role if role else roles.get(one.instrument, "")
        for key, id in on.items():
            old = self.on.get(key)
            if old is not None and old != id and key not in self.lingers:
                self.lingers[key] = old
                self.sim.later(self, self.meet, key, id)
                self.sim.at(self.sim.now + LINGER_S, lambda key=key, id=id, life=self.life: self.life == life and self.give_up(key, id))
        self.lingers = {key: id for key, id in self.lingers.items() if key in on and on[key] != id}
        more = {int(key[2][1:]) for key in on.keys() - self.on.keys()}
        self.on = on
        for instrument in [instrument for instrument in self.holds if instrument not in roles]:
            del self.holds[instrument]
            self.handed.pop(instrument, None)
        for instrument, role in roles.items():
            if instrument not in self.holds:
                self.holds[instrument] = "private" if role else "owned"
                self.refuses.discard(instrument)
                if role and self.sim.random.random() < 0.05:
                    self.refuses.add(instrument)
            if role and instrument in more:
                self.sim.later(self, self.become_ready, instrument)

    def meet(self, key, id):
        if self.on.get(key) == id and key in self.lingers and self.sim.random.random() > 0.15:
            del self.lingers[key]
            self.say("moved", key, id, True, "")

    def give_up(self, key, id):
        if self.on.get(key) == id and key in self.lingers:
            self.say("moved", key, id, False, "it did not come up")

    def become_ready(self, instrument):
        if self.holds.get(instrument) == "private":
            if self.sim.random.random() < 0.1:
                key = next((key for key in self.on if int(key[2][1:]) == instrument), None)
                self.say("stream", key, "REJECTED", "no such channel")
            else:
                self.say_ready(instrument)

    def say_ready(self, instrument):
        self.say("ready", instrument, {key[2][0]: 1 for key in self.on if int(key[2][1:]) == instrument})

    def do_ask(self, instrument=None):
        """One instrument, or everything."""
        for instrument, state in self.holds.items():
            if state == "private":
                self.say_ready(instrument)
        for key in list(self.lingers):
            self.give_up(key, self.on[key])

    def do_letgo(self, instrument, to_worker):
        if self.holds.get(instrument) == "owned" and self.sim.random.random() < 0.1:
            self.say("let_gone", instrument, None, False, "its records did not reach the floors")
        elif instrument in self.holds and (self.holds[instrument] == "owned" or instrument in self.handed):
            self.holds[instrument] = "private"
            self.handed.setdefault(instrument, {"worker": self.number, "instrument": instrument})
            self.say("let_gone", instrument, self.handed[instrument], True, "")
        else:
            self.say("let_gone", instrument, None, False, "it is not published here")

    def do_takeover(self, instrument, from_worker, handover):
        if instrument not in self.holds:
            self.say("taken_over", instrument, False, "no stream of it")
        elif self.holds[instrument] == "private" and instrument in self.refuses:
            self.say("taken_over", instrument, False, "not possible")
        else:
            self.holds[instrument] = "owned"
            self.handed.pop(instrument, None)
            self.say("taken_over", instrument, True, "")


class Simulation:
    """The network, the clock, the supervisor's shell, and what must always be true."""

    def __init__(self, seed, faults):
        self.random, self.faults = random.Random(seed), faults
        self.now, self.heap, self.finished, self.reasons = 1000.0, [], {}, []
        self.order = 0
        self.workers = [Worker(self, number) for number in range(WORKERS)]
        self.mover = Mover(profiles(), placed())
        self.life = 0                # of the supervisor; 0 < dead: it is down
        self.running = True
        self.mover.up = set(range(WORKERS))
        for number in range(WORKERS):
            self.workers[number].do_shard(self.mover.shard(number))
        self.text = snapshot(self.mover, self.mover.placement)
        self.ownerless = {}          # instrument → since when

    # -- time and messages

    def at(self, due, function, *arguments):
        self.order += 1
        heapq.heappush(self.heap, (due, self.order, function, arguments))

    def later(self, worker, function, *arguments):
        """At any time a worker may take; to become ready it may take too long."""
        life = worker.life
        longest = 1.0 if not self.faults else LINGER_S - 1 if function == worker.meet else 50.0
        self.at(self.now + self.random.choice((0.01, 0.3, 2.0, longest)),
                lambda: worker.alive and worker.life == life and function(*arguments))

    def to_worker(self, worker, function, *arguments):
        life = worker.life
        worker.due = max(worker.due, self.now + self.random.choice((0.001, 0.02, 0.5)))
        self.at(worker.due, lambda: worker.alive and worker.life == life and function(*arguments))

    def to_supervisor(self, worker, kind, fields):
        life, number = self.life, worker.number
        self.at(self.now + 0.001, lambda: self.running and self.life == life and self.heard(number, kind, fields))

    def heard(self, number, kind, fields):
        if kind == "ready":
            self.mover.heard_ready(self.now, number, *fields, [])
        elif kind == "stream":
            if fields[0] is not None:
                self.mover.heard_stream(self.now, number, *fields)
        else:
            getattr(self.mover, f"heard_{kind}")(self.now, number, *fields)
        self.pump()

    # -- the shell

    def pump(self):
        self.mover.pump(self.now)
        actions = list(self.mover.take())
        if not actions:
            return
        first = [action for action in actions if isinstance(action, TakeOver)] if actions and isinstance(actions[0], TakeOver) else []
        for action in first:
            self.perform(action)
        if self.crashes():
            return
        self.text = snapshot(self.mover, self.mover.placement)
        for action in actions:
            if action not in first:
                if self.crashes():
                    return
                self.perform(action)

    def crashes(self):
        if self.faults and self.random.random() < 0.004:
            self.kill_supervisor()
        return not self.running

    def perform(self, action):
        if isinstance(action, Shard):
            worker = self.workers[action.worker]
            if worker.alive:
                self.to_worker(worker, worker.do_shard, self.mover.shard(action.worker))
        elif isinstance(action, (LetGo, TakeOver, Ask)):
            worker = self.workers[action.worker]
            self.to_worker(worker, getattr(worker, f"do_{type(action).__name__.lower()}"), *action[1:4 if isinstance(action, TakeOver) else 3])
        elif isinstance(action, Replace):
            self.kill_worker(self.workers[action.worker])
        elif isinstance(action, Finished):
            assert action.reason and action.step.number not in self.finished
            self.finished[action.step.number] = action
        else:
            assert isinstance(action, (Promoted, Replan, Rotate))
            self.reasons.append(action)

    def kill_worker(self, worker):
        if not worker.alive:
            return
        worker.alive = False
        worker.life += 1
        worker.clear()
        life = self.life
        self.at(self.now + 0.003, lambda: self.running and self.life == life and self.mourn(worker))

    def mourn(self, worker):
        if not worker.alive:
            self.mover.went_down(self.now, worker.number)
            self.pump()
            if self.running:
                self.fork(worker)

    def fork(self, worker):
        life = self.life

        def came():
            if self.running and self.life == life:
                self.mover.came_up(self.now, worker.number)
                self.to_worker(worker, worker.do_shard, self.mover.shard(worker.number))
                self.pump()
        worker.alive, worker.due, worker.life = True, self.now, worker.life + 1      # what was said to its predecessor is lost
        self.at(self.now + 0.02, came)

    def kill_supervisor(self):
        if self.running:
            self.running = False
            self.life += 1
            self.at(self.now + self.random.choice((0.0, 0.5, 5.0)), self.start_supervisor)

    def start_supervisor(self):
        self.running = True
        numbers = set(self.finished)
        self.mover = revived(self.text, self.now)
        self.finished = {number: action for number, action in self.finished.items() if number in numbers}
        known = {step.number for step in (*self.mover.flying.values(), *self.mover.queue)}
        self.finished = {number: action for number, action in self.finished.items() if number not in known}
        dead = [worker for worker in self.workers if not worker.alive]
        self.mover.up = {worker.number for worker in self.workers if worker.alive}
        for worker in dead:
            self.mover.went_down(self.now, worker.number)
        self.pump()
        for worker in self.workers:
            if not self.running:
                return
            if worker in dead:
                self.fork(worker)
            else:
                self.mover.came_up(self.now, worker.number)
                self.to_worker(worker, worker.do_shard, self.mover.shard(worker.number))
                self.to_worker(worker, worker.do_ask)
                self.pump()

    # -- the run

    def step(self, until):
        while self.now < until:
            if self.heap and self.heap[0][0] <= self.now + 0.25:
                due, _, function, arguments = heapq.heappop(self.heap)
                self.now = max(self.now, due)
                function(*arguments)
            else:
                self.now += 0.25
                if self.running:
                    self.mover.tick(self.now)
                    self.pump()
            self.check()

    def check(self):
        """One owner at most, none only with a reason; no limit passed with all halves counted."""
        owners = collections.defaultdict(list)
        on = collections.Counter()
        for worker in self.workers:
            for instrument, state in worker.holds.items():
                if state == "owned":
                    owners[instrument].append(worker.number)
            for key, id in (*worker.on.items(), *worker.lingers.items()):
                on[id] += 1
        assert all(len(found) <= 1 for found in owners.values()), owners
        assert all(count <= FILL for count in on.values()) and len(on) <= OPEN * 80 // 100 and sum(on.values()) <= STREAMS * 80 // 100
        for instrument in self.mover.placement.workers:
            if owners[instrument]:
                self.ownerless.pop(instrument, None)
            else:
                since = self.ownerless.setdefault(instrument, self.now)
                assert self.now - since < 120, f"instrument {instrument} has had no owner since {since}: {self.mover.busy.get(instrument)}"
        for step in self.mover.flying.values():
            assert self.now - step.since_s < 60, f"stuck: {step}"


def random_move(sim):
    """Something an operator, a plan or a rollover would ask for."""
    mover, placement = sim.mover, sim.mover.placement
    instrument = sim.random.choice(sorted(placement.workers))
    streams = [w for w in mover.of_instrument(instrument) if w.line != STANDBY]
    source = placement.workers[instrument]
    kind = sim.random.random()
    if kind < 0.6:
        target = sim.random.choice([worker for worker in range(WORKERS) if worker != source])
        mover.add(1, MOVE, [(w.key, mover.home[w.key], 0) for w in streams], "asked for", source, target)
    elif kind < 0.8:
        connection = mover.connections[mover.home[sim.random.choice(streams).key]]
        mover.add(1, MOVE, [(w.key, connection.id, 0) for w in connection.streams], "rolled over", source, source, fresh=True, urgent=True)
    elif instrument in placement.standbys:
        streams = [w for w in mover.of_instrument(instrument) if w.line == STANDBY]
        source = placement.standbys[instrument]
        target = sim.random.choice([worker for worker in range(WORKERS) if worker != source])
        mover.add(1, MOVE, [(w.key, mover.home[w.key], 0) for w in streams], "asked for", source, target)


def test_whatever_dies_an_instrument_has_one_owner_and_every_move_ends(request):
    @settings(max_examples=RUNS_LONG if request.config.getoption("--long") else RUNS, deadline=None)
    @given(st.integers(0, 1 << 32))
    def check(seed):
        endure(seed)
    check()


def endure(seed):
    """Moves asked for at random among deaths, then quiet; everything is settled at the end."""
    sim = Simulation(seed, faults=True)
    end = sim.now + 120
    while sim.now < end:
        sim.step(sim.now + sim.random.uniform(0, 3))
        if sim.running and sim.random.random() < 0.6:
            random_move(sim)
            sim.pump()
        if sim.random.random() < 0.1:
            sim.kill_worker(sim.random.choice(sim.workers))
        if sim.random.random() < 0.05:
            sim.kill_supervisor()
    sim.faults = False
    sim.step(sim.now + 200)
    assert not sim.mover.flying and not sim.mover.queue
    for instrument, owner in sim.mover.placement.workers.items():
        assert [worker.number for worker in sim.workers if worker.holds.get(instrument) == "owned"] == [owner]
    for instrument, standby in sim.mover.placement.standbys.items():
        assert sim.workers[standby].holds[instrument] == "private"
    for worker in sim.workers:
        assert {key: id for connection, streams in sim.mover.shard(worker.number) for key, id in [(w.key, connection.id) for w, _, _ in streams]} == worker.on


# -- one at a time -------------------------------------------------------------------------------------------------------

def two_workers(streams=4, open_=OPEN, fill=FILL, standby=False, **options):
    """A Mover with a placement of one-stream instruments on two workers that are up; times are the test's own."""
    limits = profiles(open_, fill, **options)
    wants = [want(i) for i in range(streams)] + ([want(i, line=STANDBY) for i in range(streams)] if standby else [])
    mover = Mover(limits, plan.plan(wants, limits, settings=Settings(workers=2)).placement)
    mover.up = {0, 1}
    return mover


def across(mover, instrument, job=1):
    source = mover.placement.workers[instrument]
    key = want(instrument).key
    mover.add(job, MOVE, [(key, mover.home[key], 0)], "asked for", source, 1 - source)
    return source, 1 - source


def said(mover, kind):
    return [action for action in mover.take() if isinstance(action, kind)]


def roles(mover, worker, instrument):
    return [role for _, streams in mover.shard(worker) for one, role, _ in streams if one.instrument == instrument]


def test_a_move_between_workers_goes_through_its_phases():
    mover = two_workers()
    source, target = across(mover, 0)
    mover.pump(0.0)
    assert (roles(mover, source, 0), roles(mover, target, 0)) == ([""], ["incoming"])
    mover.heard_ready(1.0, target, 0, {"t": 7}, ["t"])
    assert said(mover, LetGo) == [LetGo(source, 0, target, {"t": 7}, ["t"], moves.LET_GO_S)]
    mover.heard_let_gone(2.0, source, 0, {"sequence": 9}, True, "")
    assert said(mover, TakeOver) == [TakeOver(target, 0, source, {"sequence": 9})]
    mover.heard_taken_over(3.0, target, 0, True, "")
    finished, = said(mover, Finished)
    assert finished.ok and mover.placement.workers[0] == target and (roles(mover, source, 0), roles(mover, target, 0)) == ([], [""])
    assert not mover.flying and not mover.busy


@pytest.mark.parametrize("phase, event, expected", [
    ("preparing", lambda mover, source, target: mover.heard_stream(1.0, target, want(0).key, "REJECTED", "no"), "was rejected"),
    ("preparing", lambda mover, source, target: mover.tick(moves.PREPARE_S), "was not ready within 30 s"),
    ("preparing", lambda mover, source, target: mover.went_down(1.0, target), "died"),
    ("preparing", lambda mover, source, target: mover.went_down(1.0, source), "died"),
    ("letting go", lambda mover, source, target: mover.heard_let_gone(1.0, source, 0, None, False, "floors"), "floors")])
def test_a_move_that_cannot_go_on_ends_where_it_began(phase, event, expected):
    mover = two_workers()
    source, target = across(mover, 0)
    mover.pump(0.0)
    if phase == "letting go":
        mover.heard_ready(0.5, target, 0, {"t": 1}, [])
    mover.take()
    event(mover, source, target)
    finished, = said(mover, Finished)
    assert not finished.ok and expected in finished.reason
    assert mover.placement.workers[0] == source and roles(mover, target, 0) == [] and not mover.flying


def in_phase(mover, phase):
    source, target = across(mover, 0)
    mover.pump(0.0)
    mover.heard_ready(0.0, target, 0, {"t": 1}, [])
    if phase == "taking over":
        mover.heard_let_gone(0.0, source, 0, {"x": 1}, True, "")
    list(mover.take())
    return source, target


def test_once_it_was_told_to_let_go_a_dead_owner_is_taken_over_from_its_ring():
    mover = two_workers()
    source, target = in_phase(mover, "letting go")
    mover.went_down(1.0, source)
    assert said(mover, TakeOver) == [TakeOver(target, 0, source, None)]
    assert roles(mover, source, 0) == [], "its successor must not begin what another publishes"


def test_a_new_owner_that_dies_before_it_was_told_gives_back_without_its_ring_and_after_it_by_its_ring():
    for phase, came_from in (("letting go", 0), ("taking over", 1)):
        mover = two_workers()
        source, target = in_phase(mover, phase)
        mover.went_down(1.0, target)
        assert said(mover, TakeOver) == [TakeOver(source, 0, (source, target)[came_from], None)]
        mover.heard_taken_over(2.0, source, 0, True, "")
        assert [action.ok for action in said(mover, Finished)] == [False] and mover.placement.workers[0] == source


def test_who_does_not_answer_is_replaced_and_nothing_is_asked_twice():
    mover = two_workers()
    source, target = in_phase(mover, "taking over")
    for second in range(1, 60):
        mover.tick(float(second))
        replaced = [action for action in mover.take() if isinstance(action, (Replace, TakeOver))]
        assert [action.worker for action in replaced] == ([target] if second == moves.ANSWER_S else [])


def test_an_instrument_nobody_can_take_begins_anew_after_nobody_held_it():
    mover = two_workers()
    source, target = in_phase(mover, "taking over")
    mover.heard_taken_over(1.0, target, 0, False, "no")
    mover.heard_taken_over(1.0, source, 0, False, "nor I")
    assert roles(mover, source, 0) == roles(mover, target, 0) == []
    mover.tick(1.0 + moves.RESET_S)
    finished, = said(mover, Finished)
    assert "begins anew, with a gap" in finished.reason and roles(mover, source, 0) == [""]


def test_a_ready_standby_takes_over_at_once_and_the_first_thing_said_is_to_it():
    mover = two_workers(standby=True)
    owner = mover.placement.workers[0]
    mover.known(0, True)
    mover.known(2, False)
    owned = {instrument for instrument, worker in mover.placement.workers.items() if worker == owner}
    mover.went_down(1.0, owner)
    actions = list(mover.take())
    takes = [action for action in actions if isinstance(action, TakeOver)]
    assert actions[:len(takes)] == takes and {take.instrument for take in takes} == owned - {2}
    assert all(take.from_worker == owner and take.worker == 1 - owner and take.handover is None for take in takes)
    mover.heard_taken_over(1.0, 1 - owner, 0, True, "")
    assert mover.placement.workers[0] == 1 - owner and 0 not in mover.placement.standbys and said(mover, Replan)


def test_both_halves_count_so_a_full_address_moves_one_after_the_other_and_rotates_what_it_cannot_roll_over():
    mover = two_workers(streams=8, open_=4, fill=3)
    assert len(mover.placement.connections) >= 3, "three connections, all this address may hold"
    id = mover.placement.connections[0].id
    worker = mover.placement.connections[0].worker
    mover.add(0, MOVE, [(w.key, id, 0) for w in mover.placement.connections[0].streams], "its age", worker, worker, fresh=True)
    mover.pump(0.0)
    actions = list(mover.take())
    assert Rotate(worker, id) in actions
    assert any(isinstance(action, Finished) and "closed and reopened" in action.reason for action in actions)
    room = two_workers(streams=8, open_=10, fill=3)
    id, worker = room.placement.connections[0].id, room.placement.connections[0].worker
    held = [w.key for w in room.placement.connections[0].streams]
    room.add(0, MOVE, [(key, id, 0) for key in held], "its age", worker, worker, fresh=True)
    room.pump(0.0)
    assert {room.home[key] for key in held} == {max(room.connections)} and id in room.connections
    for key in held:
        room.heard_moved(1.0, worker, key, room.home[key], True, "")
    assert [action.ok for action in said(room, Finished)] == [True]
    room.tick(1.0 + moves.LEAVE_S)
    assert id not in room.connections


def test_streams_that_do_not_come_up_stay_and_the_others_go():
    mover = two_workers(streams=6)
    connection = next(c for c in mover.placement.connections if len(c.streams) >= 2)
    keys, id, worker = [w.key for w in connection.streams], connection.id, connection.worker
    mover.add(1, MOVE, [(key, id, 0) for key in keys], "its age", worker, worker, fresh=True)
    mover.pump(0.0)
    fresh = mover.home[keys[0]]
    for key in keys:
        mover.heard_moved(1.0, worker, key, fresh, key != keys[0], "it did not come up")
    finished, = said(mover, Finished)
    assert not finished.ok and "1 of" in finished.reason
    assert mover.home[keys[0]] == id and {mover.home[key] for key in keys[1:]} == {fresh}


def test_a_newer_plan_overtakes_what_has_not_started_and_what_is_asked_for_stays():
    mover = two_workers()
    key = want(0).key
    mover.add(3, DROP, [(key, mover.home[key], 0)], "no longer wanted", 0, None)
    mover.add(3, ADD, [(want(9).key, 0, 77)], "new", None, 0, wants=[want(9)])
    across(mover, 1)
    mover.overtake()
    assert {action.step.kind for action in said(mover, Finished)} == {DROP, ADD} and len(mover.queue) == 1


def test_what_is_added_elsewhere_than_its_instrument_lives_is_refused_and_planned_anew():
    mover = two_workers()
    owner = mover.placement.workers[0]
    other = want(0, "q")
    mover.add(3, ADD, [(other.key, 0, 77)], "new", None, 1 - owner, wants=[other])
    mover.pump(0.0)
    actions = list(mover.take())
    assert any(isinstance(action, Replan) for action in actions) and other.key not in mover.home


def test_what_is_let_go_of_too_late_is_given_back_at_once():
    mover = two_workers()
    owner = mover.placement.workers[0]
    mover.heard_let_gone(1.0, owner, 0, {"x": 1}, True, "")
    assert said(mover, TakeOver) == [TakeOver(owner, 0, owner, {"x": 1})]


def replaced(mover):
    """(connection that is being replaced, its worker, its streams' keys)."""
    connection = next(c for c in mover.placement.connections if len(c.streams) >= 3)
    keys, id, worker = [w.key for w in connection.streams], connection.id, connection.worker
    mover.add(1, MOVE, [(key, id, 0) for key in keys], "its age", worker, worker, fresh=True)
    mover.pump(0.0)
    return id, worker, keys


@pytest.mark.parametrize("again", [False, True])
def test_what_was_to_join_a_connection_that_is_being_replaced_joins_the_one_that_follows(again):
    mover = two_workers(streams=8)
    id, worker, keys = replaced(mover)
    if again:                    # its supervisor dies
        mover = revived(snapshot(mover, mover.placement), 0.0)
        mover.up = set(mover.placement.workers.values())
    list(mover.take())
    for key in keys[1:]:
        mover.heard_moved(5.0, worker, key, mover.home[key], True, "")
    fresh = mover.home[keys[0]]
    other = want(mover.wants[keys[0]].instrument, "x")
    mover.add(2, ADD, [(other.key, 0, id)], "new", None, worker, wants=[other])
    mover.heard_moved(5.0, worker, keys[0], fresh, True, "")
    mover.tick(5.0)              # what left it is not sure to be gone: in the placement it stands, empty
    assert id in mover.connections and mover.home[other.key] == fresh
    mover.tick(5.0 + moves.LEAVE_S)
    assert id not in mover.connections and not mover.ending


def test_a_connection_that_is_being_replaced_is_not_the_roomiest_one():
    mover = two_workers(streams=8)
    id, worker, keys = replaced(mover)
    for key in keys[1:]:
        mover.heard_moved(5.0, worker, key, mover.home[key], True, "")
    mover.tick(5.0 + moves.LEAVE_S)
    assert len(mover.room.live[id].items) == 1
    instrument = next(instrument for instrument, home in mover.placement.workers.items() if home != worker)
    across(mover, instrument)
    mover.pump(8.0)
    assert mover.busy[instrument].streams[0][2] not in (0, id)


def test_a_new_supervisor_learns_from_what_lingers_what_has_moved():
    mover = two_workers(streams=8)
    id, worker, keys = replaced(mover)
    mover = revived(snapshot(mover, mover.placement), 0.0)
    mover.up = {0, 1}
    mover.heard_lingering(1.0, worker, {keys[0], None})
    assert not said(mover, Finished)
    mover.heard_moved(1.0, worker, keys[0], mover.home[keys[0]], True, "")
    finished, = said(mover, Finished)
    assert finished.ok and id not in {mover.home[key] for key in keys}


def test_what_another_move_holds_leaves_a_connection_that_is_replaced_when_that_has_ended():
    mover = two_workers(streams=8)
    connection = next(c for c in mover.placement.connections if len(c.streams) >= 3)
    id, worker, busy = connection.id, connection.worker, connection.streams[0]
    across(mover, busy.instrument)
    mover.pump(0.0)
    keys = [w.key for w in connection.streams]
    mover.add(0, MOVE, [(key, id, 0) for key in keys], "its age", worker, worker, fresh=True, urgent=True)
    mover.pump(0.0)
    assert busy.instrument in mover.busy and mover.home[busy.key] == id
    assert all(mover.home[key] != id for key in keys if key != busy.key), "the others are not held up"
    mover.back(1.0, mover.busy[busy.instrument], "it was not ready")
    mover.tick(1.0 + moves.LEAVE_S)
    assert mover.home[busy.key] != id, "it follows"


def test_an_instrument_that_got_a_line_while_it_waited_moves_with_it():
    mover = two_workers()
    owner = mover.placement.workers[0]
    mover.paused = "for a while"
    across(mover, 0)
    line = want(0, line=1)
    mover.put(line, 77, owner)
    mover.room.join(line, 77, owner, force=True)
    mover.paused = ""
    mover.pump(0.0)
    step = mover.busy[0]
    assert {key for key, _, _ in step.streams} == {want(0).key, line.key} and not said(mover, Finished)


def with_more(mover, instrument):
    """The owner of an instrument has got a stream that its standby lacks."""
    more = want(instrument, "q")
    mover.put(more, 77, mover.placement.workers[instrument])
    mover.room.join(more, 77, mover.placement.workers[instrument], force=True)
    return more


def test_a_standby_gets_what_it_lacks_before_it_takes_over():
    mover = two_workers(standby=True)
    more = with_more(mover, 0)
    source, target = across(mover, 0)
    mover.pump(0.0)
    assert {action.worker for action in said(mover, Shard)} >= {target} and mover.busy[0].promotes
    assert {one.channel for _, streams in mover.shard(target) for one, role, _ in streams if one.instrument == 0 and role == "standby"} == {"t", "q"}
    mover.heard_ready(1.0, target, 0, {"t": 1}, [])
    assert mover.busy[0].phase == moves.PREPARING, "not with the part that came there first"
    mover.heard_ready(1.0, target, 0, {"t": 1, "q": 1}, [])
    assert mover.busy[0].phase == moves.LETTING
    mover.heard_let_gone(1.0, source, 0, {"x": 1}, True, "")
    mover.heard_taken_over(1.0, target, 0, True, "")
    assert mover.placement.workers[0] == target and mover.home[more.key] != 77


def test_a_standby_without_room_for_what_it_lacks_takes_nothing_over():
    mover = two_workers(streams=4, fill=2, open_=5, standby=True)
    with_more(mover, 0)
    before = {id: set(fill.items) for id, fill in mover.room.live.items()}
    across(mover, 0)
    mover.pump(0.0)
    assert not mover.flying and {id: set(fill.items) for id, fill in mover.room.live.items()} == before


def test_an_instrument_whose_standby_lacks_a_stream_begins_anew_when_its_owner_dies():
    mover = two_workers(standby=True)
    owner = mover.placement.workers[0]
    others = {instrument for instrument, worker in mover.placement.workers.items() if worker == owner} - {0}
    with_more(mover, 0)
    mover.heard_ready(0.0, 1 - owner, 0, {"t": 1}, [])
    assert 0 not in mover.ready
    mover.went_down(1.0, owner)
    assert {action.instrument for action in said(mover, TakeOver)} == others


def test_what_is_added_where_it_is_already_is_done():
    mover = two_workers()
    mover.add(4, ADD, [(want(0).key, 0, mover.home[want(0).key])], "new", None, mover.placement.workers[0], wants=[want(0)])
    mover.pump(0.0)
    finished, = said(mover, Finished)
    assert finished.ok and not mover.queue


def test_an_owner_hears_that_it_has_got_a_standby():
    mover = two_workers()
    owner, other = mover.placement.workers[0], want(0, line=STANDBY)
    mover.add(1, ADD, [(other.key, 0, 77)], "new", None, 1 - owner, wants=[other])
    mover.pump(0.0)
    assert {action.worker for action in said(mover, Shard)} == {0, 1}
    assert {backed for _, streams in mover.shard(owner) for one, _, backed in streams if one.instrument == 0} == {True}
