"""What every worker is to do: subscriptions → instruments → streams → connections → one Assign a worker.

Keeps the venues' instrument lists, the master table, the placement with the moves in flight beside it, and the ids of
streams; asks nobody and sends nothing. saved() and restore() carry all of it over the death of a supervisor.
"""
import dataclasses
import os
import urllib.parse

import msgspec

from feedhandler import control, venues
from feedhandler.capacity import headroom, plan
from feedhandler.capacity.limits import LINE_B, STANDBY, Fill, Rules, item_of
from feedhandler.capacity.load import Loads
from feedhandler.capacity.moves import Mover
from feedhandler.capacity.profile import ATTEMPTS_DEFAULT, BAN_DEFAULT_S, Profile, Window, merge, rest_window
from feedhandler.venue import Channel, VenueError
from feedhandler.supervisor import instruments

REST_DEFAULT = Window(10, 1.0)   # where a venue documents no REST limit
TRANSIT_S = 0.5   # what was granted so far apart may reach the venue at once: a permit may be used late, name, TCP and TLS take their time
CLAIM_TRIES = 3   # plans made anew because another instance took the room meanwhile


class VenueHome:
    """One venue of this instance: its Venue, profiles with overrides, addresses, and what it lists."""

    def __init__(self, name, index, table, folder, config):
        self.name, self.index, self.table = name, index, table
        self.venue = venues.load(name, config.instruments.max)
        self.profiles, self.typed = {}, {}
        for endpoint, profile in self.venue.profiles.items():
            limits = table.limits[endpoint].model_dump(exclude_none=True) if table and endpoint in table.limits else {}
            self.profiles[endpoint] = merge(profile, {"messages_per_s": config.load.messages_per_s, **limits})
            self.typed[endpoint] = Profile.read(self.profiles[endpoint])
        self.urls = {**self.venue.urls, **(table.urls if table else {})}
        self.urls_b = {**self.urls, **(table.urls_b if table else {})}
        self.source, self.source_b = (table.source, table.source_b) if table else ("", "")
        self.rest_url = table.rest if table and table.rest else self.venue.rest_url
        self.ca_file = os.path.join(folder, table.ca_file) if table and table.ca_file else ""
        window = table.rest_weight if table else None
        self.rest_window = Window(window.n, window.per_s) if window else next(
            filter(None, map(rest_window, self.profiles.values())), REST_DEFAULT)
        self.listed = None           # [Instrument] once known
        self.problem = "its instrument list was not fetched yet"
        self.first_data_s = None     # how long the first took, once there is one
        self.deadline_s = table.first_data_s if table else None

    def way(self, endpoint, line):
        """(url, local address to leave from) of a line's connections."""
        return (self.urls_b[endpoint], self.source_b or self.source) if line == LINE_B else (self.urls[endpoint], self.source)

    def deadline(self, stream):
        """Seconds to a stream's first data; 0: it may stay silent for ever, and no setting changes that."""
        return self.deadline_s if self.deadline_s and stream.first_data_s else stream.first_data_s

    def connect_key(self, endpoint):
        return f"connect {self.name} {urllib.parse.urlsplit(self.urls[endpoint]).netloc}"

    def operation_key(self, endpoint):
        return f"operations {self.name} {urllib.parse.urlsplit(self.urls[endpoint]).netloc}"

    def held_key(self, endpoint):
        return f"held {self.name}/{endpoint} {urllib.parse.urlsplit(self.urls[endpoint]).netloc}"

    def http_open(self, endpoint):
        """Connections of this endpoint's that our REST takes."""
        return self.typed[endpoint].http_open if self.rest_url else 0

    def ban_s(self, endpoint):
        """How long nothing is tried after a punishment whose end nobody named."""
        return self.typed[endpoint].ban_s or BAN_DEFAULT_S

    @property
    def counted_keys(self):
        """Budgets of connection attempts that the venue counts together with REST."""
        return [self.connect_key(endpoint) for endpoint, typed in self.typed.items() if typed.counts_http]

    @property
    def rest_key(self):
        return f"rest {self.name} {urllib.parse.urlsplit(self.rest_url).netloc}"

    def attempt_windows(self, endpoint):
        """Of connection attempts, as they are granted: long enough that as they arrive they keep the venue's."""
        return tuple(Window(window.n, window.per_s + TRANSIT_S) for window in self.typed[endpoint].attempts or ATTEMPTS_DEFAULT)

    def operation_windows(self, endpoint):
        """Of subscribe messages of all connections together, as they are granted."""
        return tuple(Window(window.n, window.per_s + TRANSIT_S) for window in self.typed[endpoint].operations)

    def operation_credits(self, endpoint):
        """(pool, refill_per_s) of the same, less what comes back while a permit may still be unused; () where there are none."""
        if not self.typed[endpoint].credits:
            return ()
        pool, refill_per_s = self.typed[endpoint].credits
        return max(1, int(pool - refill_per_s * TRANSIT_S)), refill_per_s


class Shards:
    """The plan of an instance and the messages that say it."""

    def __init__(self, config, folder):
        self.config, self.folder = config, folder
        names = list(dict.fromkeys(entry.venue for entry in config.subscribe))
        self.homes = {name: VenueHome(name, index, config.venues.get(name), folder, config) for index, name in enumerate(names)}
        self.master = None
        self.loads = Loads()
        self.mover = Mover({})       # has the placement
        self.drained = set()         # workers that are to hold nothing
        self.assigns = {}            # worker → Assign, as last told
        self.generation = 0
        self.stream_ids = {}         # key → id
        self.plans = {}              # key → StreamPlan, of all that is or was wanted last
        self.wants = {}              # key → Wanted, of the same
        self.streams = {}            # id → StreamPlan, of what is placed
        self.owners = {}             # instrument → worker, as `instruments` says
        self.key_of = {}             # stream id → key
        self.home_of = {}            # stream id → (venue, worker, connection id)
        self.limits = {}             # connection id → messages a second it was found limited to
        self.priorities = {}         # key → of its subscription, the highest
        self.shed = {}               # key → sentence: wanted, and let go because nothing else helped
        self.place_of = {}           # connection id → (venue, endpoint)
        self.problems = []           # sentences: what was asked for and cannot be had
        self.refused = {}            # venue → {sentence}
        self.others = dict           # → {(venue, endpoint): (connections, streams, sentences)} that other instances hold
        self.claim = lambda placement: True   # whether what a placement needs could be held, before it is told

    @property
    def placement(self):
        return self.mover.placement

    # -- what is wanted ------------------------------------------------------------------------------------------------

    def wanted(self):
        """(Wanted streams, {key: venue.Stream}, problems) of all venues whose list is known."""
        wanted, details, problems, backed = {}, {}, [], set()
        self.priorities = {}
        for entry in self.config.subscribe:
            home = self.homes[entry.venue]
            if home.listed is None:
                continue
            found, said = instruments.resolve(entry.venue, home.listed, entry.symbols, entry.limit)
            problems += said
            for instrument in found:
                id = self._want(entry, home, instrument, wanted, details, problems)
                if entry.standby and id is not None:
                    backed.add(id)
        for want in [want for want in wanted.values() if want.instrument in backed and want.line == 0]:   # an instrument has a standby as a whole
            other = dataclasses.replace(want, line=STANDBY)
            wanted[other.key], details[other.key] = other, details[want.key]
        return list(wanted.values()), details, list(dict.fromkeys(problems))

    def _wanted_all(self):
        """wanted(), and of venues whose list is not known, as after an adoption, what was wanted of them last."""
        wanted, details, problems = self.wanted()
        unlisted = {home.name for home in self.held() if home.listed is None}
        return wanted + [want for want in self.wants.values() if want.venue in unlisted], details, problems

    def _want(self, entry, home, instrument, wanted, details, problems):
        try:
            id = self.master.add(home.name, home.index, instrument, home.venue.price_digits_min.get(instrument.kind, 0),
                                 home.venue.size_digits_min.get(instrument.kind, 0))
        except instruments.InstrumentError as error:
            problems.append(str(error))
            return None
        for text in entry.channels:
            try:
                stream = home.venue.stream(instrument.symbol, Channel.parse(text))
            except VenueError as error:
                problems.append(str(error))
                continue
            for line in range(entry.lines):
                want = plan.Wanted(home.name, stream.endpoint, stream.wire, id, stream.symbol or instrument.symbol, line, stream.channel, instrument.kind)
                self.priorities[want.key] = max(entry.priority, self.priorities.get(want.key, 0))
                if want.key in self.shed:
                    problems.append(self.shed[want.key])
                    continue
                wanted.setdefault(want.key, want)
                details.setdefault(want.key, stream)
        return id

    def held(self):
        """Homes of the venues that something is subscribed at; a change that was refused may have left others."""
        names = {entry.venue for entry in self.config.subscribe}
        return [home for home in self.homes.values() if home.name in names]

    def awaited(self):
        """Venues that carry streams while their lists are not known, as after an adoption: to plan without them would end these."""
        placed = {connection.venue for connection in self.placement.connections}
        return [home.name for home in self.held() if home.listed is None and home.name in placed]

    def know(self, config):
        """Homes of venues this configuration brings; they keep the places of the others. What they are is not wanted yet."""
        held = {home.name for home in self.held()}
        names = [name for name in dict.fromkeys(entry.venue for entry in config.subscribe)
                 if name not in self.homes or (name not in held and self.homes[name].table != config.venues.get(name))]
        for name in names:
            index = self.homes[name].index if name in self.homes else len(self.homes)
            self.homes[name] = VenueHome(name, index, config.venues.get(name), self.folder, config)
        return [self.homes[name] for name in names]

    def trial(self, config):
        """(placement, problems) as replan() would make them of another configuration. Nothing is applied."""
        kept, self.config = self.config, config
        try:
            wanted, _, problems = self.wanted()
            return self.place(wanted, improve=False).placement, problems
        finally:
            self.config = kept

    def replan(self, improve=False, job=0):
        """The Plan of everything wanted, whose moves wait from now on; without improve, what is placed stays where a limit does
        not force it. The first one is placed at once. PlanError: it does not fit, and nothing was changed."""
        wanted, details, problems = self._wanted_all()
        found = self._claimed(wanted, improve)
        self.problems = problems
        self._describe(wanted, details)
        mover = self.mover
        if mover.placement.connections or mover.flying:
            mover.know(self.profiles(), self.settings(improve))
            mover.overtake()
            mover.enqueue(job, found.moves, {want.key: want for connection in found.placement.connections for want in connection.streams})
        else:
            mover.reset(self.profiles(), found.placement, self.settings(improve))
            self.refresh(range(self.config.instance.workers))
        return found

    def _describe(self, wanted, details):
        """Know how each wanted stream is told to a worker; forget what is neither wanted nor placed."""
        self.wants = {want.key: want for want in wanted}
        self.plans = {key: row for key, row in self.plans.items() if key in self.wants or key in self.mover.home}
        for key, stream in details.items():
            want = self.wants[key]
            id = self.stream_ids.setdefault(key, len(self.stream_ids) + 1)
            self.plans[key] = control.StreamPlan(id, want.instrument, stream.endpoint, stream.wire, want.symbol, stream.channel, stream.depth,
                                                 stream.snapshot, self.homes[want.venue].deadline(stream))
            if want.line != STANDBY:
                self.master.table.set_state(want.instrument, 2)  # SUBSCRIBED

    def _claimed(self, wanted, improve):
        """The Plan, held against other instances that plan at the same time."""
        for _ in range(CLAIM_TRIES):
            found = self.place(wanted, improve)
            if self.claim(found.placement):
                return found
        raise plan.PlanError(["other instances take this address's connections faster than we can plan; try again"])

    def place(self, wanted, improve):
        """The Plan beside what other instances hold; a PlanError names those that take the room."""
        others, settings = self.others(), self.settings(improve)
        if settings.workers - len(settings.drained) < 2:     # nowhere to keep a standby: as while one of two workers is renewed
            wanted = [want for want in wanted if want.line != STANDBY]
        try:
            return plan.plan(wanted, self.profiles(others), self.loads, self.placement, settings)
        except plan.PlanError as error:
            for (venue, endpoint), (_, _, sentences) in others.items():
                if any(problem.startswith(f"{venue}/{endpoint} needs") for problem in error.problems):
                    error.problems.extend(sentences)
            raise

    def profiles(self, others=None):
        """{(venue, endpoint): Profile} with what other instances hold taken off."""
        others = self.others() if others is None else others
        return {(home.name, endpoint): dataclasses.replace(typed, held_open=held[0], held_streams=held[1]) if held else typed
                for home in self.homes.values() for endpoint, typed in home.typed.items() for held in [others.get((home.name, endpoint))]}

    def settings(self, improve):
        load = self.config.load
        drained = tuple(sorted(worker for worker in self.drained if worker < self.config.instance.workers))
        return plan.Settings(self.config.instance.workers, drained, load.messages_per_s, load.streams_per_worker, load.target_percent, improve=improve,
                             limits=self.limits,
                             sources_b=tuple(name for name, home in self.homes.items() if home.source_b))

    # -- what would be better, and what is used ------------------------------------------------------------------------

    def proposal(self):
        """The Plan that improves on the placement by what was learned since. Nothing is applied."""
        return self.place(self._wanted_all()[0], improve=True)

    def headroom(self):
        """Budgets of the placement as it is."""
        profiles = self.profiles()
        rules, fills = {key: Rules(profile) for key, profile in profiles.items()}, []
        for connection in self.placement.connections:
            place = connection.venue, connection.endpoint, connection.line
            fills.append(Fill(connection.id, connection.worker, place, rules[place[:2]]))
            for stream in connection.streams:
                fills[-1].add(item_of(stream, rules[place[:2]], self.loads))
        return headroom.budgets(fills, profiles, self.settings(improve=True))

    # -- the plan as messages ------------------------------------------------------------------------------------------

    def refresh(self, workers):
        """Make the assigns of these workers, and what is known of streams, follow the placement and the moves."""
        self.generation += 1
        for worker in workers:
            self.assigns[worker] = self._assign(worker)
        for worker in [worker for worker in self.assigns if worker >= self.config.instance.workers]:
            del self.assigns[worker]
        self.streams, self.home_of, self.key_of = {}, {}, {}
        self.place_of = {id: (connection.venue, connection.endpoint) for id, connection in self.mover.connections.items()}
        for connection in self.placement.connections:
            for want in connection.streams:
                stream = self.plan_of(want.key)
                self.streams[stream.id] = stream
                self.home_of[stream.id] = connection.venue, connection.worker, connection.id
                self.key_of[stream.id] = want.key
        for id, worker in self.placement.workers.items():
            if self.owners.get(id) != worker:
                self.owners[id] = worker
                self.master.table.set_owner(id, worker)

    def _assign(self, worker):
        connections, instruments_ = [], {}
        for connection, held in self.mover.shard(worker):
            home = self.homes[connection.venue]
            url, source = home.way(connection.endpoint, connection.line)
            streams = [msgspec.structs.replace(self.plan_of(want.key), role=role, backed=backed) for want, role, backed in held]
            instruments_.update((stream.instrument, None) for stream in streams)
            connections.append(control.ConnectionPlan(connection.id, connection.venue, connection.endpoint, url, streams, home.ca_file,
                                                      home.profiles[connection.endpoint], source))
        return control.Assign(self.generation, [self.master.control_row(id) for id in instruments_], connections)

    def plan_of(self, key):
        """How a stream is told to a worker; a standby's may not be wanted any more, then as its owner's."""
        if key not in self.plans:
            self.plans[key] = msgspec.structs.replace(self.plans[(*key[:3], 0)], id=self.stream_ids.setdefault(key, len(self.stream_ids) + 1))
        return self.plans[key]

    def promoted(self, pairs):
        """A standby's streams are the owner's: each keeps its id, which is what its worker knows it by."""
        for ours, theirs in pairs:
            ids, plans = self.stream_ids, self.plans
            ids[ours], ids[theirs] = ids[theirs], ids.get(ours, len(ids) + 1)
            first = plans.get(ours, plans[theirs])
            plans[ours], plans[theirs] = (msgspec.structs.replace(first, id=ids[key]) for key in (ours, theirs))

    def assign(self, worker):
        """The shard of a worker with the exponents of now, or None before the first plan."""
        assign = self.assigns.get(worker)
        if assign is not None:
            assign.instruments = [self.master.control_row(row.id) for row in assign.instruments]
        return assign

    # -- over the death of a supervisor ----------------------------------------------------------------------------------

    def saved(self):
        """As plain data."""
        home = self.mover.home
        known = {key: row for key, row in self.plans.items() if key in self.wants or key in home}
        lost = [[*key, id] for key, id in self.stream_ids.items() if key not in known]
        return {"generation": self.generation, "problems": self.problems, "drained": sorted(self.drained), "ids": lost,
                "connections": [[c.id, c.worker, c.venue, c.endpoint, c.line] for c in self.placement.connections],
                "streams": [[*key, home.get(key, 0), key in self.wants, *self._kept(key), *msgspec.structs.astuple(row)[:9]] for key, row in known.items()],
                "workers": list(self.placement.workers.items()), "standbys": list(self.placement.standbys.items()), "moves": self.mover.saved()}

    def _kept(self, key):
        want = self.wants.get(key) or self.mover.wants[key]
        return want.symbol, want.kind

    def restore(self, document, now):
        """What saved() gave, at `now` of the mover's clock. ValueError where it is damaged."""
        try:
            connections = {row[0]: plan.Connection(*row) for row in document["connections"]}
            for venue, endpoint, wire, line, connection, is_wanted, symbol, kind, *fields in document["streams"]:
                row = control.StreamPlan(*fields)
                want = plan.Wanted(venue, endpoint, wire, row.instrument, symbol, line, row.channel, kind)
                self.plans[want.key], self.stream_ids[want.key] = row, row.id
                if is_wanted:
                    self.wants[want.key] = want
                if connection:
                    connections[connection].streams.append(want)
            self.stream_ids.update((tuple(row[:4]), row[4]) for row in document["ids"])
            placement = plan.Placement(dict(document["workers"]), list(connections.values()), dict(document["standbys"]))
            self.generation, self.problems, self.drained = document["generation"], document["problems"], set(document["drained"])
            self.mover.reset(self.profiles({}), placement, self.settings(False))
            self.mover.restore(document["moves"], now)
        except (KeyError, TypeError, IndexError, AttributeError) as error:
            raise ValueError(f"plan.json is damaged: {error!r}") from None
        self.refresh(range(self.config.instance.workers))
