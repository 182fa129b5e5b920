"""Days of operation on a simulated clock: planned rollovers, and random operations and faults, with every record held against
what the venues said. simulated_world.py says what is real in it."""
import collections

import hypothesis
from hypothesis import strategies
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from feedhandler.capacity import moves
from simulated_world import DAY, HOUR, MINUTE, MS, SECOND, BinanceUsdm, Deribit, Settings, World

PROFILE = {"liveness": {"server_ping": "app", "server_ping_s": 600}, "lifetime": {"max_s": 86_400, "notice_lead_s": 60},
           "conn": {"max_open": 60, "attempts": [{"n": 30, "per_s": 60}]}}
STEP_MAX_S = 150             # a move in flight ends sooner, whatever happens
UNNAMED_MAX_NS = 150 * SECOND   # and so does a stream's state that is on the way to another
UNNAMED = ("PENDING", "SUBSCRIBING", "ACKED", "SYNCING")
HEAL_NS = 25 * MINUTE        # refused and silent streams are asked for again after ten
numbers = strategies.integers(0, 10**6)
pauses = strategies.sampled_from((0, 1, 50, 300, 2_000, 15_000)).map(lambda ms: ms * MS)

DAYS, DAYS_LONG = 4, 30
hours, counts = [], collections.Counter()    # connection-hours of each world that was run, and what happened in all of them


class Operations(RuleBasedStateMachine):
    """What operators, venues, networks and processes do, in any order and at any moment."""

    @initialize(seed=numbers, lines=strategies.sampled_from((1, 2)), standbys=strategies.booleans(), jitter=strategies.sampled_from((1, 20, 150)))
    def begin(self, seed, lines, standbys, jitter):
        self.world = World(Settings(seed=seed, lines=lines, standbys=standbys, profile=PROFILE, limits={"soft_per_conn": 4}, jitter_ns=jitter * MS))
        self.world.__enter__()
        self.since = {}          # step → when it was first seen in flight
        self.world.supervisor.plan(improve=False)
        assert self.world.run_until(self.world.is_well, 10 * MINUTE), self.world.unwell()

    @property
    def supervisor(self):
        return self.world.supervisor

    def pick(self, number, items):
        items = list(items)
        return items[number % len(items)] if items else None

    def socket(self, number):
        return self.pick(number, [link.session for worker in self.world.workers if not worker.is_dead for link in worker.links.values()
                                  if link.session is not None and link.connection.state == "UP"])

    # -- operators ---------------------------------------------------------------------------------------------------

    @rule(number=numbers, worker=numbers, pause=pauses)
    def move_instrument(self, number, worker, pause):
        instrument, target = self.pick(number, self.world.by_id), worker % len(self.world.workers)
        source = self.supervisor.mover.placement.workers.get(instrument)
        if not self.supervisor.is_dead and source not in (None, target):
            self.supervisor.move([[key, id, 0] for key, id in self.supervisor.mover.home.items()
                                  if self.supervisor.mover.wants[key].instrument == instrument and key[3] < 2], source, target)
        self.world.run(pause)

    @rule(number=numbers, pause=pauses)
    def move_connection(self, number, pause):
        connection = self.pick(number, self.supervisor.mover.connections.values())
        if not self.supervisor.is_dead and connection is not None and connection.streams:
            self.supervisor.move([[want.key, connection.id, 0] for want in connection.streams], connection.worker, connection.worker, fresh=True)
        self.world.run(pause)

    @rule(worker=numbers, pause=pauses)
    def drain(self, worker, pause):
        if not self.supervisor.is_dead:
            self.supervisor.drained = {worker % len(self.world.workers)} if not self.supervisor.drained else set()
            self.supervisor.plan()
        self.world.run(pause)

    @rule(hours_=strategies.integers(12, 72))
    def wait(self, hours_):
        self.world.run(hours_ * HOUR)

    # -- processes -----------------------------------------------------------------------------------------------------

    @rule(worker=numbers, pause=pauses)
    def kill_worker(self, worker, pause):
        self.world.kill_worker(worker % len(self.world.workers))
        self.world.run(pause)

    @rule(unsent=strategies.booleans(), pause=pauses)
    def kill_supervisor(self, unsent, pause):
        if not self.supervisor.is_dead:
            self.world.kill_supervisor(unsent)
        self.world.run(pause)

    @rule(pause=pauses)
    def begin_supervisor(self, pause):
        self.world.begin_supervisor()
        self.world.run(pause)

    # -- networks and venues ---------------------------------------------------------------------------------------------

    @rule(number=numbers, how=strategies.sampled_from(("reset", "half-open", "stalled", "closed")), pause=pauses)
    def connection_dies(self, number, how, pause):
        socket = self.socket(number)
        if socket is not None:
            self.world.lost(socket)
            if how == "half-open":
                socket.half_open()
            elif how == "stalled":
                socket.is_stalled = True
            else:
                socket.hang_up(1006 if how == "reset" else 1001, how)
        self.world.run(pause)

    @rule(number=numbers, pause=pauses)
    def venue_gives_notice(self, number, pause):
        socket = self.socket(number)
        if socket is not None and socket in socket.exchange.sockets:
            socket.exchange.give_notice(socket, 60 * SECOND)
        self.world.run(pause)

    @rule(number=numbers, seconds=strategies.integers(1, 120), pause=pauses)
    def venue_lets_nobody_in(self, number, seconds, pause):
        address = self.pick(number, [address for exchange in self.world.exchanges.values() for address in exchange.addresses.values()])
        address.down_until = self.world.now + seconds * SECOND
        self.world.run(pause)

    @rule(number=numbers, how=strategies.sampled_from(("deaf", "refused")), pause=pauses)
    def venue_ignores(self, number, how, pause):
        exchange = self.pick(number, self.world.exchanges.values())
        getattr(exchange, how).add(self.pick(number // 2, exchange.tapes))
        self.world.run(pause)

    @rule(share=strategies.sampled_from((0.0, 0.5, 0.9)))
    def rest_answers(self, share):
        self.world.rest_fails = share

    @rule()
    def venues_are_well(self):
        self.world.heal()

    # -- what always holds -------------------------------------------------------------------------------------------------

    @invariant()
    def nothing_is_wrong(self):
        if hasattr(self, "world"):
            assert not (said := self.world.failures()), said[:5]
            self.no_move_is_stuck()
            assert not (said := self.world.unnamed(UNNAMED, UNNAMED_MAX_NS)), said

    def no_move_is_stuck(self):
        flying = [] if self.supervisor.is_dead else list(self.supervisor.mover.flying.values())
        self.since = {step: self.since.get(step, self.world.now) for step in map(id, flying)}
        assert not [step for step in flying if self.world.now - self.since[id(step)] > STEP_MAX_S * SECOND]

    def teardown(self):
        if not hasattr(self, "world"):
            return
        world = self.world
        try:
            world.heal()
            if world.supervisor.is_dead or world.supervisor.dies_unsent:
                world.begin_supervisor()
            assert world.run_until(world.is_well, HEAL_NS), (world.unwell(), world.supervisor.mover.flying, world.supervisor.mover.queue)
            world.reader.check_complete()
            assert not (said := world.failures()), said[:5]
            hours.append(world.connection_hours())
            counts.update(world.counts)
            counts["records"] += sum(world.reader.records[kind] for kind in ("trade", "mark", "level"))
            counts["excused"] += world.reader.lost
        finally:
            world.__exit__()


def test_operations_and_faults_in_any_order_lose_nothing_silently(request):
    examples, steps = (300, 60) if request.config.getoption("--long") else (30, 25)
    settings = hypothesis.settings(max_examples=examples, stateful_step_count=steps, deadline=None, derandomize=not request.config.getoption("--long"),
                                   database=None, suppress_health_check=list(hypothesis.HealthCheck), phases=[hypothesis.Phase.generate])
    hours.clear()
    counts.clear()
    run_state_machine_as_test(Operations, settings=settings)
    print(f"{sum(hours):,.0f} simulated connection-hours in {len(hours)} worlds: "
          + ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items())))
    assert sum(hours) >= 10_000


def test_days_of_500_connections_with_a_life_of_24_hours_lose_nothing(request):
    """No record lost, no GAP, and no two connections of an address opened in the same minute after the start: each connection is
    replaced once a day. Thirty days in the long run; the first four hold the start, where all were opened at once, and its echo."""
    days = DAYS_LONG if request.config.getoption("--long") else DAYS
    settings = Settings(
        workers=100, listing=((Deribit, 84), (BinanceUsdm, 83)), limits={"soft_per_conn": 1}, may_die=False, look_ns=500 * MS, report_ns=400 * MS,
        idle_ns=HOUR, busy_ns=400 * MS, busy_for_ns=2 * SECOND,
        profile={"liveness": {"server_ping": "app", "server_ping_s": 3 * 3600}, "lifetime": {"max_s": 86_400},
                 "conn": {"max_open": None, "attempts": [{"n": 300, "per_s": 300}]}})
    with World(settings) as world:
        world.supervisor.plan(improve=False)
        assert world.run_until(world.is_well, 30 * MINUTE, 5 * SECOND), world.unwell()
        addresses = {name: address for exchange in world.exchanges.values() for name, address in exchange.addresses.items()}
        begun = {name: len(address.opened) for name, address in addresses.items()}
        assert sum(begun.values()) >= 500
        for day in range(days):
            world.run(DAY)
            assert not (said := world.failures()), said[:5]
        assert world.run_until(world.is_well, HOUR, 5 * SECOND), world.unwell()
        world.reader.check_complete()
        assert not (said := world.failures()), said[:5]
        rolled = {name: address.opened[begun[name]:] for name, address in addresses.items()}
        assert not world.excuses, "nothing went wrong that could excuse a hole"
        assert not world.reader.records["GAP"] and not world.reader.lost and not any(address.cuts for address in addresses.values())
        for opened in rolled.values():
            assert all(later - sooner >= MINUTE - SECOND for sooner, later in zip(opened, opened[1:]))
        assert sum(map(len, rolled.values())) >= 500 * (days - 1)
        print(f"{days} days: {sum(map(len, rolled.values())):,} rollovers, {world.connection_hours():,.0f} connection-hours, {sum(world.reader.records.values()):,} records")
