"""The supervisor: one asyncio process an instance. Off the data path: killed, everything goes on but control.

Start: lock → adopt or clean up → files → launcher → workers → instrument lists → plan → Assign; then it grants permits
and snapshots, watches workers, answers the command line. Told to stop, it stops the workers and removes everything.
"""
import asyncio
import hashlib
import json
import os
import signal
import time

from feedhandler import __version__, control, instance
from feedhandler.capacity.headroom import next_reached
from feedhandler.capacity.limits import LINE_B, STANDBY
from feedhandler.capacity.plan import PlanError
from feedhandler.config import Config, resolved
from feedhandler.supervisor import learning, rest, tables
from feedhandler.supervisor.changes import Changes
from feedhandler.supervisor.crew import Crew
from feedhandler.supervisor.instruments import Master
from feedhandler.supervisor.leases import Leases
from feedhandler.supervisor.ledger import Ledger, default_path
from feedhandler.supervisor.moves import Moves
from feedhandler.supervisor.permits import Permits
from feedhandler.supervisor.saturation import Saturation
from feedhandler.supervisor.server import Server
from feedhandler.supervisor.shard import Shards

DRAIN_S = 1.0
LEASE_PERIOD_S = 1.0         # how soon what has closed is left to other instances
BANNING_CODES = frozenset((403, 418, 429, 1008, 4008))   # of a close or refusal: the address is shut out, not one connection
OPERATIONS_BAN_S = 10.0      # after a complaint about operations that the address shares
LIST_TIMEOUT_S = 15.0        # the first plan waits this long for instrument lists
SPACE_RESERVE = 1 << 20      # bytes left free for others
STDERR_SIZE_MAX = 1 << 20    # of launcher.log, where workers print what should not happen
PROBLEM_MAX = 100            # sentences shown
FRESH_TIMEOUT_S = 0.5        # subs waits this long for the workers' figures of now
SETTLED = ("LIVE", "HELD", "REJECTED", "STALE")
WELL = ("LIVE", "HELD")


class StartError(Exception):
    """The instance cannot start; the text says why and what to do."""


class Supervisor:
    """name is free and its lock is held by us (lock); path is of the configuration, ca_file is relative to its folder."""

    def __init__(self, config, name, path, lock, log, on_ready):
        self.config, self.name, self.lock, self.log, self.on_ready = config, name, lock, log, on_ready
        self.path = path
        self.shards = Shards(config, os.path.dirname(path))
        self.changes, self.moves, self.listing = Changes(self), Moves(self), {}   # listing: venue → task that reads its list
        self.crew = self.ledger = self.table = self.server = None
        self.leases = Leases(self)
        self.rests = {}                  # venue → Rest
        self.learner = None
        self.saturation = Saturation()
        self.states = {}                 # stream id → StreamState
        self.sessions = {}               # connection id → (worker, SessionState)
        self.permits = Permits(self)
        self.snapshots = {}              # stream id → task
        self.asked = {}                  # worker number → future of its answer to Query
        self.punished = {}               # (venue, endpoint) → last Punished
        self.tasks = set()
        self.begun = time.monotonic()
        self.created_ns, self.generation = time.time_ns(), time.time_ns()
        self.ending = asyncio.Event()
        self.failure, self.ready, self.planned = None, False, False
        self.resolved = None, None       # a configuration, and it as plain data
        self.note = ""                   # what the operator should know about this start
        self.digest = _digest(config)

    # -- life --------------------------------------------------------------------------------------------------------

    async def run(self):
        """The whole life. StartError when it cannot begin; any failure of ours ends it with the workers left alive."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.ending.set)
        created = False
        try:
            living = self._take_over()
            created = not living
            await self._begin(living)
        except BaseException:
            await self._end(remove=created)
            raise
        self.start_task(self._ready_timeout())
        await self.ending.wait()
        await self._end(remove=self.failure is None and not self.moves.leaving)
        if self.failure is not None:
            raise self.failure

    def _take_over(self):
        """What a run before left: the living workers of its manifest, or [] after its files were removed."""
        kind, manifest = instance.leftovers(self.name)
        if kind == "workers":
            living = instance.workers_alive(manifest)
            self.created_ns, self.generation = manifest["created_ns"], manifest["generation"]
            self._follow()
            self.note = f"adopted {len(living)} living worker{'s' * (len(living) != 1)} of a supervisor that died"
            return living
        if kind == "stale":
            count = instance.remove(self.name)
            self.note = f"removed {count} files of a run that crashed"
        needed = tables.size_needed(self.config.instruments.max, self.config.instance.workers, self.config.ring.slots)
        free = instance.space_free()
        if needed + SPACE_RESERVE > free:
            raise StartError(f"/dev/shm has {free:,} bytes free, this instance needs {needed:,}; lower ring.slots ({self.config.ring.slots:,}), "
                             f"instance.workers ({self.config.instance.workers}) or instruments.max, or enlarge it: "
                             f"mount -o remount,size={(needed + SPACE_RESERVE) * 2 >> 20}M /dev/shm")
        return []

    async def _begin(self, living):
        dir_fd = instance.open_directory(self.name) if living else instance.create(self.name)
        try:
            if not living:
                tables.create(dir_fd, self.config.instruments.max, self.generation)
            self.table = tables.Instruments(dir_fd)
        finally:
            os.close(dir_fd)
        self.log.open(f"{instance.directory(self.name)}/{instance.LOG}")
        self._redirect_stderr()
        self.log("start", name=self.name, pid=os.getpid(), note=self.note)
        self.shards.master = Master(self.table, tables.UNDEFINED)
        self._leave_worker_cpus()
        self._open_budgets()
        self.shards.loads, said = learning.read(learning.path_of(self.name))
        if said:
            self.log("loads_damaged", reason=said)
        self.learner = learning.Learner(self.shards.loads, self.config.instance.spin)
        self.crew = Crew(self, self.generation)
        self._restore(living)
        if self.planned:
            self.leases.adopt(living)
        self.on_crew_changed(living)
        self.server = Server(instance.control_path(self.name), {
            "status": self.status, "subs": self.subs, "conns": self.conns, "capacity": self.capacity,
            "plan": self.plan, "reload": self.changes.reload, "subs add": self.changes.add, "subs remove": self.changes.remove, "moves": self.moves.document,
            "rebalance": self.moves.rebalance, "subs move": self.moves.move, "drain": self.moves.drain, "restart": self.moves.restart, "stop": self.stop, "ping": lambda arguments: os.getpid()}, self.log)
        await self.server.start()
        lists = [] if self.planned else [self.list_once(home) for home in self.shards.homes.values()]
        self.moves.resume([row["worker"] for row in living])
        await self.crew.start(living)
        self.moves.go_on()
        if not self.planned:
            if lists:
                await asyncio.wait(lists, timeout=LIST_TIMEOUT_S)
                self._check_reached()
            self._plan()
        self.start_task(self.moves.run())
        self.start_task(self.permits.run())
        self.start_task(self._settle())
        self.start_task(self._learn())

    def _follow(self):
        """The configuration the living workers have, with what was subscribed at run time, in place of the file's."""
        try:
            with open(f"{instance.directory(self.name)}/{instance.PLAN}") as file:
                document = json.load(file)
            config = Config.model_validate(document["config"])
            names = list(instance.manifest_read(self.name)["venues"])
            shards = Shards(config, os.path.dirname(document["path"]))
        except (OSError, ValueError, KeyError):
            return      # _restore() says so
        if list(shards.homes)[:len(names)] == names or set(shards.homes) == set(names):
            shards.homes = {name: shards.homes[name] for name in names}
            for index, home in enumerate(shards.homes.values()):
                home.index = index
            self.config, self.shards = config, shards

    def apply(self, config, path=""):
        """Follow another configuration that was checked; path: of its file, "": it is ours, changed at run time. What was shed is
        wanted again."""
        self.shards.shed = {}
        if path:
            self.digest, self.path = _digest(config), path
        self.config = self.shards.config = config
        if len(self.crew.workers) < config.instance.workers:
            self.start_task(self.crew.grow())
        self._plan()
        self.states = {id: state for id, state in self.states.items() if id in self.shards.streams}
        self.sessions = {id: entry for id, entry in self.sessions.items() if id in self.shards.place_of}
        self.permits.forget_others(self.sessions)
        self.on_crew_changed()

    def _restore(self, living):
        """The plan of living workers, so that nothing of theirs is disturbed."""
        if not living:
            return
        try:
            with open(f"{instance.directory(self.name)}/{instance.PLAN}") as file:
                document = json.load(file)
            self.shards.restore(document["shards"], time.monotonic())
            self.moves.restore(document["moves"])
            self.saturation.restore(document.get("limits", ()), time.monotonic())
        except (OSError, ValueError, KeyError) as error:
            self.log("plan_lost", reason=str(error))
            return
        self.planned = True
        if document["digest"] != self.digest:
            self.note += "; the configuration differs from theirs and is not applied: feedhandler reload says what of it can be, stop and start apply all"
            self.log("config_differs")

    def _redirect_stderr(self):
        """Workers and the launcher print into launcher.log; ours goes there too once we are a daemon."""
        if self.log.to_stderr:
            return
        fd = os.open(f"{instance.directory(self.name)}/launcher.log", os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o640)
        os.dup2(fd, 2)
        os.close(fd)

    def _leave_worker_cpus(self):
        mine = os.sched_getaffinity(0) - set(self.config.instance.cpus)
        if self.config.instance.cpus and mine:
            os.sched_setaffinity(0, mine)

    def _open_budgets(self):
        self.ledger = Ledger(default_path(), lambda text: self.log("budgets_damaged", reason=text))
        self.shards.others, self.shards.claim = self.leases.others, self.leases.claim
        for home in self.shards.homes.values():
            self.open_budget(home)

    def open_budget(self, home):
        for endpoint in home.profiles:
            self.ledger.open(home.connect_key(endpoint), home.attempt_windows(endpoint))
            if home.typed[endpoint].shares_operations:
                self.ledger.open(home.operation_key(endpoint), home.operation_windows(endpoint), home.operation_credits(endpoint))
        if home.rest_url:
            self.ledger.open(home.rest_key, [home.rest_window])
            self.rests[home.name] = rest.Rest(home.name, home.rest_url, home.ca_file, self.ledger, home.rest_key, self.log, home.counted_keys)

    async def _end(self, remove):
        """Stop what runs; with remove, the workers and files too. Without, they are left to be adopted."""
        self.log("stop", remove=remove, reason=str(self.failure or ""))
        for task in list(self.tasks):
            task.cancel()
        if self.server is not None:
            await self.server.close()
        for client in self.rests.values():
            await client.close()
        if self.learner is not None:
            self._save_loads()
        if self.crew is not None and remove:
            await self.crew.stop(DRAIN_S)
            self.leases.release()
        if self.table is not None:
            self.table.close()
        self.log.close()
        if remove:
            instance.remove(self.name)

    def start_task(self, coroutine):
        task = asyncio.get_running_loop().create_task(coroutine)
        self.tasks.add(task)
        task.add_done_callback(self._task_done)
        return task

    def _task_done(self, task):
        self.tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.on_failure(task.exception())

    def on_failure(self, error):
        """Our own invariant broke: this process ends, the workers go on, the next start adopts them."""
        if self.failure is None:
            self.failure = error
            self.log("failure", reason=f"{type(error).__name__}: {error}")
        self.ending.set()

    # -- instrument lists and the plan ---------------------------------------------------------------------------------

    def list_once(self, home):
        """The task that reads a venue's list: one at a time."""
        task = self.listing.get(home.name)
        if task is None or task.done():
            task = self.listing[home.name] = self.start_task(self._list(home))
        return task

    async def _list(self, home):
        """A venue's instrument list, however long it takes; the plan follows when it comes late."""
        def failed(reason):
            home.problem = f"{home.name}: its instrument list cannot be read: {reason}"
            self.log("list_failed", venue=home.name, reason=reason)
        bodies = []
        requests = home.venue.instrument_requests()
        if requests and home.name not in self.rests:
            failed("the venue has no REST address")
            return
        for request in requests:
            bodies.append(await self.rests[home.name].get_until(request, failed))
        try:
            home.listed = home.venue.instruments(bodies)
        except (ValueError, KeyError, TypeError) as error:
            home.problem = f"{home.name}: its instrument list cannot be understood: {type(error).__name__} {error}"
            self.log("list_failed", venue=home.name, reason=home.problem)
            return
        home.problem = ""
        self.log("list", venue=home.name, instruments=len(home.listed), after_s=round(time.monotonic() - self.begun, 3))
        if self.planned and not self.shards.awaited():
            self._plan()

    def _check_reached(self):
        """One venue that cannot be reached is a reason to be degraded; all of them are no start."""
        homes = self.shards.homes.values()
        if all(home.listed is None for home in homes):
            said = [home.problem or f"{home.name}: no answer from {home.rest_url} within {LIST_TIMEOUT_S:g} s" for home in homes]
            raise StartError("no venue could be reached:\n  " + "\n  ".join(said[:PROBLEM_MAX])
                             + "\nlook at this machine's network and name service, then start again; feedhandler demo needs neither")

    def _plan(self, improve=False):
        """Place what is wanted and tell the workers. The first plan must fit; a later one that does not changes nothing."""
        try:
            self.shards.replan(improve)
        except PlanError as error:
            if not self.planned:
                raise StartError("the subscriptions do not fit:\n  " + "\n  ".join(error.problems[:PROBLEM_MAX])) from None
            self.shards.problems = error.problems
            self.log("plan_refused", problems=error.problems[:PROBLEM_MAX])
            return
        first, self.planned = not self.planned, True
        if first:
            self.save_plan()
        else:
            self.moves.start()
        self.log("plan", generation=self.shards.generation, streams=len(self.shards.streams),
                 connections=len(self.shards.placement.connections), problems=self.shards.problems[:PROBLEM_MAX])
        for worker in self.crew.workers if first else ():
            if worker.state == "UP":
                self.tell_shard(worker)
        self._look_ready()

    def plan_again(self):
        """What is wanted is not what there is, after a death or a move that could not be made."""
        if self.planned:
            self._plan()

    def save_plan(self):
        """All that the next supervisor must know to go on, in one step."""
        if self.planned:
            if self.resolved[0] is not self.config:
                self.resolved = self.config, resolved(self.config)
            instance.write_json(self.name, instance.PLAN, {"digest": self.digest, "config": self.resolved[1], "path": self.path,
                                                           "shards": self.shards.saved(), "moves": self.moves.saved(),
                                                           "limits": self.saturation.saved(time.monotonic())})

    def tell_shard(self, worker):
        assign = self.shards.assign(worker.number)
        if assign is not None and self.leases.cover():
            worker.say(assign)
            worker.generation = self.shards.generation

    # -- what the crew says ------------------------------------------------------------------------------------------

    def on_crew_changed(self, living=()):
        """Write the manifest. Before the first fork it names who lives already."""
        rows = [{"worker": worker.number, "pid": worker.pid, "pid_start": worker.pid_start, "cpu": worker.cpu} for worker in self.crew.workers]
        for row in living:
            if row["worker"] < len(rows):
                rows[row["worker"]] = row
        instance.manifest_write(self.name, {
            "abi": instance.ABI, "generation": self.generation, "name": self.name, "version": __version__, "created_ns": self.created_ns,
            "supervisor": {"pid": os.getpid(), "pid_start": instance.pid_start()}, "workers": rows, "venues": list(self.shards.homes)})
        if not living:
            self.leases.settle()

    def on_worker_up(self, worker):
        self.moves.on_worker_up(worker)
        if self.planned:
            self.tell_shard(worker)
        worker.say(control.Query())
        self._look_ready()

    def on_worker_down(self, worker):
        """Its instruments go to their standbys; its streams are down until its successor says otherwise."""
        self.moves.on_worker_down(worker)
        now, worker.behind = time.time_ns(), ""
        self.saturation.worker(time.monotonic(), worker.number, "")
        for id, (_, number, _) in self.shards.home_of.items():
            if number == worker.number:
                self.states[id] = control.StreamState(id, "DOWN", f"worker {number} died", now)
        self.sessions = {id: entry for id, entry in self.sessions.items() if entry[0] != worker.number}
        if worker.number in self.asked:
            self.asked.pop(worker.number).set_result(None)
        self.permits.forget(worker.number)
        self.permits.forget_others(self.sessions)

    def on_message(self, worker, message):
        getattr(self, "_on_" + type(message).__name__.lower())(worker, message)

    def _on_states(self, worker, message):
        for state in message.streams:
            if self.shards.home_of.get(state.id, ("", -1))[1] == worker.number:
                self.states[state.id] = state
                home = self.shards.homes[self.shards.home_of[state.id][0]]
                if state.state == "LIVE" and home.first_data_s is None:
                    home.first_data_s = time.monotonic() - self.begun
        for session in message.sessions:
            self.permits.look_up(session)
            self.sessions[session.id] = worker.number, session
            if self.saturation.connection(time.monotonic(), session.id, session.health, session.reason, session.messages_per_s):
                self.log("throttled", worker=worker.number, connection=session.id, reason=session.reason)
                self.save_plan()
        worker.behind = message.behind
        if self.saturation.worker(time.monotonic(), worker.number, worker.behind):
            self.log("behind", worker=worker.number, reason=worker.behind)
        self.moves.on_states(worker, message.streams)
        if message.full:
            self.moves.on_whole(worker, message)
        if message.full and worker.number in self.asked:
            self.asked.pop(worker.number).set_result(None)
        if message.full and worker.counters is not None:
            self.learner.heard(worker.number, worker.pid, message.streams, worker.counters.sessions(), self.shards.streams, self.shards.home_of,
                               self.saturation.throttled())
        self._look_ready()

    def _on_ready(self, worker, message):
        self.moves.on_ready(worker, message)

    def _on_letgone(self, worker, message):
        self.moves.on_letgone(worker, message)

    def _on_takenover(self, worker, message):
        self.moves.on_takenover(worker, message)

    def _on_moved(self, worker, message):
        self.moves.on_moved(worker, message)

    def _on_closing(self, worker, message):
        self.moves.on_closing(worker, message)

    def _on_exponentraised(self, worker, message):
        try:
            self.shards.master.exponents_raised(message.instrument, message.price_exponent, message.size_exponent)
        except (ValueError, IndexError, KeyError) as error:
            self.log("exponent_refused", worker=worker.number, instrument=message.instrument, reason=str(error))

    def _on_punished(self, worker, message):
        self.punished[message.venue, message.endpoint] = message
        self.log("punished", worker=worker.number, venue=message.venue, endpoint=message.endpoint, code=message.code, reason=message.reason,
                 retry_s=message.retry_s)
        home = self.shards.homes.get(message.venue)
        if home is not None and message.endpoint in home.profiles:
            self._ban(home, message.endpoint, message)

    def _ban(self, home, endpoint, message):
        """Keep to what the venue asked for; where it named no end, to its documents or a default, ever longer."""
        said, typed = f"{home.name}/{endpoint}: {message.code} {message.reason}".strip(), home.typed[endpoint]
        keys = [home.connect_key(endpoint)] + ([home.rest_key] if typed.counts_http and home.rest_url else [])
        if message.retry_s > 0:
            for key in keys:
                self.ledger.ban(key, message.retry_s, said)
        elif message.code in BANNING_CODES:
            for key in keys:
                self.ledger.punish(key, home.ban_s(endpoint), said)
        elif typed.shares_operations:
            self.ledger.punish(home.operation_key(endpoint), OPERATIONS_BAN_S, said)

    def _on_stopped(self, worker, message):
        self.log("worker_stopped", worker=worker.number)

    # -- what does not keep up ----------------------------------------------------------------------------------------

    def remedies(self, proposal):
        """[Remedy] for what is throttled or behind now; proposal is the Plan that shards.proposal() answers."""
        return self.saturation.remedies(time.monotonic(), proposal, self.shards.placement, self.shards.loads, self.shards.priorities,
                                        self.config.load.target_percent)

    def proposal(self):
        """The Plan that improves on the placement by what was learned and by what connections were found limited to."""
        self.saturation.keep(time.monotonic(), {connection.id for connection in self.shards.placement.connections})
        self.shards.limits = self.saturation.limits()
        return self.shards.proposal()

    def on_saturated(self):
        """load.auto_rebalance: apply what plan would propose; where no move helps for long, shed."""
        self.saturation.applied_s = time.monotonic()
        try:
            proposal = self.proposal()
        except PlanError as error:
            self.log("rebalance_refused", problems=error.problems[:PROBLEM_MAX])
            return
        remedies = self.remedies(proposal)
        for remedy in remedies:
            self.log("remedy", kind=remedy.kind, where=remedy.where, reason=remedy.sentence)
            self.shards.shed.update(dict.fromkeys(remedy.keys, remedy.sentence))
        if proposal.moves or any(remedy.keys for remedy in remedies):
            self._plan(improve=True)     # makes the moves of this proposal, and lets go of what was shed

    # -- loads ---------------------------------------------------------------------------------------------------------

    async def _learn(self):
        """Ask for all states now and then; the answers are measurements."""
        saved_s, rounds = time.monotonic(), 0
        while True:
            await asyncio.sleep(learning.MEASURE_S if rounds >= learning.FIRST_ROUNDS else learning.MEASURE_FIRST_S)
            rounds += 1
            for worker in self.crew.workers:
                if worker.state == "UP":
                    worker.say(control.Query())
            if time.monotonic() - saved_s >= learning.SAVE_S:
                saved_s = time.monotonic()
                self._save_loads()

    def _save_loads(self):
        try:
            learning.write(learning.path_of(self.name), self.shards.loads)
        except OSError as error:
            self.log("loads_not_saved", reason=str(error))

    # -- leases and snapshots ------------------------------------------------------------------------------------------

    async def _settle(self):
        """Leave to other instances what has closed; tell workers what had to wait for them."""
        while True:
            await asyncio.sleep(LEASE_PERIOD_S)
            self.leases.settle()
            for worker in self.crew.workers:
                if self.planned and worker.state == "UP" and worker.generation != self.shards.generation:
                    self.tell_shard(worker)

    def _on_wantpermit(self, worker, message):
        self.permits.wanted(worker, message)

    def _on_wantsnapshot(self, worker, message):
        stream = self.shards.streams.get(message.stream)
        if stream is None:
            worker.say(control.Snapshot(message.stream, 0, b"", "the plan has no such stream", 1.0))
        elif message.stream not in self.snapshots:
            self.snapshots[message.stream] = self.start_task(self._snapshot(worker, stream))

    async def _snapshot(self, worker, stream):
        """Fetch one book and hand the body on as it came."""
        try:
            home = self.shards.homes[self.shards.home_of[stream.id][0]]
            client = self.rests.get(home.name)
            if client is None:
                reply = rest.Reply(0, b"", f"{home.name} has no REST address", 30.0)
            else:
                reply = await client.get(home.venue.snapshot_request(stream.symbol, stream.depth))
            if len(reply.body) + 1024 > control.FRAME_SIZE_MAX:
                reply = rest.Reply(0, b"", f"the snapshot is larger than {control.FRAME_SIZE_MAX} bytes", 30.0)
            worker.say(control.Snapshot(stream.id, reply.status, reply.body, reply.reason, reply.retry_s))
        finally:
            self.snapshots.pop(stream.id, None)

    # -- ready ---------------------------------------------------------------------------------------------------------

    def settled(self, id):
        """Whether a stream has data, or a name for why it has none."""
        state = self.states.get(id)
        if state is None:
            return False
        return state.state in SETTLED or (state.state == "ACKED" and self.shards.streams[id].first_data_s == 0)

    def _look_ready(self):
        if (not self.ready and self.planned and all(worker.state in ("UP", "QUARANTINED") for worker in self.crew.workers)
                and all(not home.problem for home in self.shards.held() if not self.note.startswith("adopted"))
                and all(map(self.settled, self.shards.streams))):
            self._say_ready()

    def _say_ready(self):
        self.ready = True
        document = self.status({})
        document["note"] = self.note
        self.log("ready", after_s=document["uptime_s"], state=document["state"])
        self.on_ready(document)

    async def _ready_timeout(self):
        await asyncio.sleep(self.config.instance.ready_timeout_s)
        if not self.ready:
            self._say_ready()

    def on_look(self):
        """Ten times a second: keep what workers print bounded, and do something about what does not keep up."""
        if self.planned and self.config.load.auto_rebalance and self.saturation.is_due(time.monotonic()):
            self.on_saturated()
        if not self.log.to_stderr and os.fstat(2).st_size > STDERR_SIZE_MAX:
            os.ftruncate(2, 0)

    # -- verbs ---------------------------------------------------------------------------------------------------------

    def stop(self, arguments):
        self.log("stop_asked")
        asyncio.get_running_loop().call_later(0.01, self.ending.set)  # after the answer has left
        return {"pid": os.getpid()}

    def _reasons(self):
        """Why the instance is degraded; none: it is well."""
        for worker in self.crew.workers:
            if worker.state != "UP":
                yield f"worker {worker.number} is {worker.state}: {worker.reason}"
            if worker.behind:
                yield f"worker {worker.number} falls behind: {worker.behind}"
        if self.planned:
            yield from (home.problem for home in self.shards.held() if home.problem and not self.note.startswith("adopted"))
        yield from self.shards.problems[:PROBLEM_MAX]
        unwell = {}
        for id in self.shards.streams:
            state = self.states.get(id)
            if state is None or state.state not in WELL and not (state.state == "ACKED" and self.settled(id)):
                key = state.state if state else "PENDING", state.reason if state else "", self.shards.home_of[id][0]
                unwell[key] = unwell.get(key, 0) + 1
        for (state, reason, venue), count in sorted(unwell.items())[:PROBLEM_MAX]:
            yield f"{venue}: {count} stream{'s are' if count > 1 else ' is'} {state}" + (f": {reason}" if reason else "")

    def status(self, arguments):
        reasons = list(self._reasons())
        budgets = self.ledger.document()
        reasons += [f"{row['budget']}: banned for {row['banned_s']:g} s more: {row['reason']}" for row in budgets if "banned_until_ns" in row]
        return {
            "name": self.name, "state": "starting" if not self.ready and not self.planned else "degraded" if reasons else "ok",
            "reasons": reasons, "ready": self.ready, "uptime_s": round(time.monotonic() - self.begun, 3), "pid": os.getpid(),
            "generation": self.shards.generation, "created_ns": self.created_ns, "config": self.path,
            "drained": sorted(self.shards.drained), "moves": {"in_flight": len(self.shards.mover.flying), "waiting": len(self.shards.mover.queue)},
            "workers": [self._worker_row(worker) for worker in self.crew.workers],
            "venues": [self._venue_row(home) for home in self.shards.held()],
            "streams": _count(self.states.get(id) for id in self.shards.streams),
            "connections": {"planned": len(self.shards.placement.connections),
                            "up": sum(session.state == "UP" for id, (_, session) in self.sessions.items() if id in self.shards.place_of)},
            "budgets": budgets, "events": list(self.log.recent)[-5:]}

    def _worker_row(self, worker):
        age_ms = worker.heartbeat_age_ms()
        mine = [id for id, home in self.shards.home_of.items() if home[1] == worker.number]
        return {"worker": worker.number, "pid": worker.pid, "cpu": worker.cpu, "state": worker.state, "reason": worker.reason,
                "epoch": worker.epoch, "restarts": worker.restarts, "adopted": worker.adopted,
                "heartbeat_ms": None if age_ms is None else round(age_ms, 1), **worker.usage(), "behind": worker.behind, "streams": len(mine),
                "connections": len({self.shards.home_of[id][2] for id in mine})}

    def _venue_row(self, home):
        mine = [id for id, entry in self.shards.home_of.items() if entry[0] == home.name]
        connections = [connection for connection in self.shards.placement.connections if connection.venue == home.name]
        room = [home.typed[connection.endpoint].fill for connection in connections]
        client = self.rests.get(home.name)
        return {"venue": home.name, "instruments": len({self.shards.streams[id].instrument for id in mine}),
                "listed": None if home.listed is None else len(home.listed), "problem": home.problem if not self.note.startswith("adopted") else "",
                "streams": len(mine), "live": sum(id in self.states and self.states[id].state in WELL for id in mine),
                "connections": len(connections), "slots": None if None in room else sum(room),
                "first_data_s": None if home.first_data_s is None else round(home.first_data_s, 3), "rest": client.document() if client else None}

    async def _fresh(self):
        """Let every worker say how its streams are now; who does not answer in time is shown as it last was."""
        for worker in self.crew.workers:
            if worker.state == "UP" and worker.number not in self.asked:
                self.asked[worker.number] = asyncio.get_running_loop().create_future()
                worker.say(control.Query())
        if self.asked:
            await asyncio.wait(list(self.asked.values()), timeout=FRESH_TIMEOUT_S)

    async def subs(self, arguments):
        """Every stream: what it is, where it lives, how it is at this moment."""
        await self._fresh()
        rows = []
        for id, stream in sorted(self.shards.streams.items()):
            venue, worker, connection = self.shards.home_of[id]
            state, line = self.states.get(id) or control.StreamState(id, "PENDING", "the worker has not said yet"), self.shards.key_of[id][3]
            rows.append({"id": id, "venue": venue, "instrument": self.shards.master.rows[stream.instrument]["canonical"], "symbol": stream.symbol,
                         "channel": stream.channel, "depth": stream.depth, "endpoint": stream.endpoint, "wire": stream.wire, "worker": worker,
                         "connection": connection, "line": int(line == LINE_B), "standby": line == STANDBY, "state": state.state, "reason": state.reason, "since_ns": state.since_ns,
                         "last_ns": state.last_ns, "messages": state.messages, "gaps": state.gaps, "gap_ns": state.gap_ns,
                         "gap_reason": state.gap_reason})
        return {"name": self.name, "streams": rows}

    async def conns(self, arguments):
        """Every connection: where it lives, what it carries of what it may, and how it does beside its other line."""
        await self._fresh()
        rows = []
        for connection in self.shards.placement.connections:
            profile = self.shards.homes[connection.venue].typed[connection.endpoint]
            ban = self.ledger.banned(self.shards.homes[connection.venue].connect_key(connection.endpoint))
            _, session = self.sessions.get(connection.id, (0, control.SessionState(connection.id, 0, "IDLE", "the worker has not said yet")))
            rows.append({"id": connection.id, "venue": connection.venue, "endpoint": connection.endpoint, "worker": connection.worker,
                         "line": connection.line, "session": session.session, "state": session.state, "reason": session.reason,
                         "streams": len(connection.streams), "streams_live": session.streams_live, "slots": profile.fill,
                         "opened_ns": session.opened_ns, "reconnects": session.reconnects, "close_code": session.close_code,
                         "replaced_s": self.moves.replaced_s(connection, session),
                         "banned_s": ban and round(ban[0], 1), "ban_reason": ban and ban[1],
                         "health": session.health, "lag_ns": session.lag_ns, "queue_bytes": session.queue_bytes,
                         "messages_per_s": round(session.messages_per_s, 1), "first": session.first, "second": session.second,
                         "won_percent": _share(session.first, session.first + session.second),
                         "behind_us": round(session.behind_ns / session.behind_count / 1000, 1) if session.behind_count else None})
        return {"name": self.name, "connections": rows, "bans": self._bans()}

    def _bans(self):
        """Budgets of which nothing is spent now: until when, and why."""
        return [row for row in self.ledger.document() if "banned_until_ns" in row]

    def capacity(self, arguments):
        """Every budget of a connection, an address and a worker: what is used, what it is kept to, and by whom."""
        rows = self.shards.headroom()
        return {"name": self.name, "budgets": [_budget_row(row) for row in rows], "next": _next(rows), "permits": self.ledger.document(),
                "held": self.leases.document(), "bans": self._bans(),
                "learned": sum(load.seconds > 0 for load in map(self.shards.loads.of, self._planned_streams())), "streams": len(self.shards.streams),
                "connections": [{"id": connection.id, "venue": connection.venue, "endpoint": connection.endpoint, "worker": connection.worker}
                                for connection in self.shards.placement.connections]}

    def plan(self, arguments):
        """What rebalancing would change, and the budgets before and after. Nothing is applied."""
        if not self.planned:
            raise ValueError("the first plan is not made yet: the venues' instrument lists are awaited; ask again in a moment")
        before = self.shards.headroom()
        try:
            found = self.proposal()
        except PlanError as error:
            raise ValueError("what is wanted does not fit: " + "; ".join(error.problems[:PROBLEM_MAX])) from None
        return {"name": self.name, "moves": [_move_row(move) for move in found.moves], "problems": found.problems,
                "remedies": [{"kind": remedy.kind, "where": remedy.where, "reason": remedy.sentence} for remedy in self.remedies(found)],
                "before": [_budget_row(row) for row in before], "after": [_budget_row(row) for row in found.headroom],
                "next": _next(found.headroom)}

    def _planned_streams(self):
        return (stream for connection in self.shards.placement.connections for stream in connection.streams)


def _share(part, whole):
    return round(100 * part / whole, 1) if whole else None


def _digest(config):
    return hashlib.sha256(json.dumps(resolved(config), sort_keys=True).encode()).hexdigest()


def _budget_row(row):
    return row._asdict() | {"used": round(row.used, 4)}


def _next(rows):
    found = next_reached(rows)
    return None if found is None else _budget_row(found)


def _move_row(move):
    return {"kind": move.kind, "from_worker": move.worker_from, "to_worker": move.worker_to, "reason": move.reason,
            "streams": [{"venue": key[0], "endpoint": key[1], "wire": key[2], "line": key[3], "from": source or None, "to": target or None}
                        for key, source, target in move.streams]}


def _count(states):
    counts = {"total": 0}
    for state in states:
        counts["total"] += 1
        key = (state.state if state else "PENDING").lower()
        counts[key] = counts.get(key, 0) + 1
    return counts
