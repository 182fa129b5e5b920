"""What every worker is to do: subscriptions → instruments → streams → connections → one Assign a worker.

Keeps the venues' instrument lists, the master table, the placement and the ids of streams; asks nobody and sends
nothing. saved() and restore() carry all of it over the death of a supervisor.
"""
import os
import urllib.parse

import msgspec

from feedhandler import control, venues
from feedhandler.capacity import headroom, plan
from feedhandler.capacity.limits import Fill, Rules, item_of
from feedhandler.capacity.load import Loads
from feedhandler.capacity.profile import Profile, Window, merge, rest_window
from feedhandler.venue import Channel, VenueError
from feedhandler.supervisor import instruments

REST_DEFAULT = Window(10, 1.0)   # where a venue documents no REST limit
ATTEMPTS_DEFAULT = Window(100, 10.0)
TRANSIT_S = 0.5   # attempts granted so far apart may reach the venue at once: name, TCP and TLS take their time


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
        self.rest_url = table.rest if table and table.rest else self.venue.rest_url
        self.ca_file = os.path.join(folder, table.ca_file) if table and table.ca_file else ""
        window = table.rest_weight if table else None
        self.rest_window = Window(window.n, window.per_s) if window else next(
            filter(None, map(rest_window, self.profiles.values())), REST_DEFAULT)
        self.listed = None           # [Instrument] once known
        self.problem = "its instrument list was not fetched yet"
        self.first_data_s = None     # how long the first took, once there is one
        self.deadline_s = table.first_data_s if table else None

    def deadline(self, stream):
        """Seconds to a stream's first data; 0: it may stay silent for ever, and no setting changes that."""
        return self.deadline_s if self.deadline_s and stream.first_data_s else stream.first_data_s

    def connect_key(self, endpoint):
        return f"connect {self.name} {urllib.parse.urlsplit(self.urls[endpoint]).netloc}"

    @property
    def rest_key(self):
        return f"rest {self.name} {urllib.parse.urlsplit(self.rest_url).netloc}"

    def attempt_windows(self, endpoint):
        """Of connection attempts, as they are granted: long enough that as they arrive they keep the venue's."""
        windows = self.typed[endpoint].attempts or (ATTEMPTS_DEFAULT,)
        return tuple(Window(window.n, window.per_s + TRANSIT_S) for window in windows)


class Shards:
    """The plan of an instance and the messages that say it."""

    def __init__(self, config, folder):
        self.config, self.folder = config, folder
        names = list(dict.fromkeys(entry.venue for entry in config.subscribe))
        self.homes = {name: VenueHome(name, index, config.venues.get(name), folder, config) for index, name in enumerate(names)}
        self.master = None
        self.loads = Loads()
        self.placement = plan.EMPTY
        self.assigns = {}            # worker → Assign
        self.generation = 0
        self.stream_ids = {}         # key → id
        self.streams = {}            # id → StreamPlan
        self.home_of = {}            # stream id → (venue, worker, connection id)
        self.problems = []           # sentences: what was asked for and cannot be had
        self.refused = {}            # venue → {sentence}

    # -- what is wanted ------------------------------------------------------------------------------------------------

    def wanted(self):
        """(Wanted streams, {key: venue.Stream}, problems) of all venues whose list is known."""
        wanted, details, problems = {}, {}, []
        for entry in self.config.subscribe:
            home = self.homes[entry.venue]
            if home.listed is None:
                continue
            found, said = instruments.resolve(entry.venue, home.listed, entry.symbols, entry.limit)
            problems += said
            for instrument in found:
                self._want(entry, home, instrument, wanted, details, problems)
        return list(wanted.values()), details, list(dict.fromkeys(problems))

    def _want(self, entry, home, instrument, wanted, details, problems):
        try:
            id = self.master.add(home.name, home.index, instrument, home.venue.price_digits_min.get(instrument.kind, 0),
                                 home.venue.size_digits_min.get(instrument.kind, 0))
        except instruments.InstrumentError as error:
            problems.append(str(error))
            return
        for text in entry.channels:
            try:
                stream = home.venue.stream(instrument.symbol, Channel.parse(text))
            except VenueError as error:
                problems.append(str(error))
                continue
            for line in range(entry.lines):
                want = plan.Wanted(home.name, stream.endpoint, stream.wire, id, stream.symbol or instrument.symbol, line, stream.channel, instrument.kind)
                wanted.setdefault(want.key, want)
                details.setdefault(want.key, stream)

    def held(self):
        """Homes of the venues that something is subscribed at; a change that was refused may have left others."""
        names = {entry.venue for entry in self.config.subscribe}
        return [home for home in self.homes.values() if home.name in names]

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
            return plan.plan(wanted, self.profiles(), self.loads, self.placement, self.settings(improve=False)).placement, problems
        finally:
            self.config = kept

    def replan(self):
        """Place everything wanted and renew the assigns; what is placed stays where a limit does not force it.
        PlanError: it does not fit, and what was planned stays."""
        wanted, details, problems = self.wanted()
        self.placement = plan.plan(wanted, self.profiles(), self.loads, self.placement, self.settings(improve=False)).placement
        self.problems = problems
        self.generation += 1
        self.assigns = {worker: control.Assign(self.generation, [], []) for worker in range(self.config.instance.workers)}
        for connection in self.placement.connections:
            self._assign(connection, details)
        self._index()
        for id, worker in self.placement.workers.items():
            self.master.table.set_owner(id, worker)
            self.master.table.set_state(id, 2)  # SUBSCRIBED

    def profiles(self):
        return {(home.name, endpoint): typed for home in self.homes.values() for endpoint, typed in home.typed.items()}

    def settings(self, improve):
        load = self.config.load
        return plan.Settings(self.config.instance.workers, (), load.messages_per_s, load.streams_per_worker, load.target_percent, improve=improve)

    # -- what would be better, and what is used ------------------------------------------------------------------------

    def proposal(self):
        """The Plan that improves on the placement by what was learned since. Nothing is applied."""
        wanted, _, _ = self.wanted()
        unlisted = {name for name, home in self.homes.items() if home.listed is None}   # as after an adoption: theirs stay
        wanted += [stream for connection in self.placement.connections if connection.venue in unlisted for stream in connection.streams]
        return plan.plan(wanted, self.profiles(), self.loads, self.placement, self.settings(improve=True))

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

    def _assign(self, connection, details):
        home, assign = self.homes[connection.venue], self.assigns[connection.worker]
        streams = []
        for want in connection.streams:
            stream = details[want.key]
            id = self.stream_ids.setdefault(want.key, len(self.stream_ids) + 1)
            streams.append(control.StreamPlan(id, want.instrument, stream.endpoint, stream.wire, want.symbol, stream.channel,
                                              stream.depth, stream.snapshot, home.deadline(stream)))
        assign.connections.append(control.ConnectionPlan(connection.id, connection.venue, connection.endpoint, home.urls[connection.endpoint],
                                                         streams, home.ca_file, home.profiles[connection.endpoint]))
        known = {row.id for row in assign.instruments}
        assign.instruments += [self.master.control_row(id) for id in dict.fromkeys(want.instrument for want in connection.streams)
                               if id not in known]

    def _index(self):
        self.streams, self.home_of = {}, {}
        for worker, assign in self.assigns.items():
            for connection in assign.connections:
                for stream in connection.streams:
                    self.streams[stream.id] = stream
                    self.home_of[stream.id] = connection.venue, worker, connection.id

    def assign(self, worker):
        """The shard of a worker with the exponents of now, or None before the first plan."""
        assign = self.assigns.get(worker)
        if assign is not None:
            assign.instruments = [self.master.control_row(row.id) for row in assign.instruments]
        return assign

    # -- over the death of a supervisor ----------------------------------------------------------------------------------

    def saved(self):
        lines = {id: key[3] for key, id in self.stream_ids.items()}
        return {"generation": self.generation, "problems": self.problems, "lines": {str(id): line for id, line in lines.items()},
                "keys": [[*key, id] for key, id in self.stream_ids.items()],
                "assigns": {str(worker): msgspec.to_builtins(assign) for worker, assign in self.assigns.items()}}

    def restore(self, document):
        """What saved() gave. ValueError where it is damaged."""
        try:
            self.assigns = {int(worker): msgspec.convert(assign, control.Assign) for worker, assign in document["assigns"].items()}
            self.stream_ids = {tuple(entry[:4]): entry[4] for entry in document["keys"]}
            self.generation, self.problems = document["generation"], document["problems"]
            lines = {int(id): line for id, line in document["lines"].items()}
            connections, workers = [], {}
            for worker, assign in self.assigns.items():
                for connection in assign.connections:
                    wants = [plan.Wanted(connection.venue, stream.endpoint, stream.wire, stream.instrument, stream.symbol, lines[stream.id],
                                         stream.channel)
                             for stream in connection.streams]
                    workers.update((want.instrument, worker) for want in wants)
                    connections.append(plan.Connection(connection.id, worker, connection.venue, connection.endpoint, wants[0].line, wants))
        except (KeyError, TypeError, IndexError, AttributeError, msgspec.ValidationError) as error:
            raise ValueError(f"plan.json is damaged: {error!r}") from None
        self.placement = plan.Placement(workers, connections)
        self._index()
