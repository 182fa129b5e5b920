"""Moves as the supervisor makes them: what operators, plans, rollovers and deaths ask for, carried from and to the workers.

The logic is capacity.moves; this saves it before each step, sends its actions, and runs the long jobs: rebalance, drain,
rolling restart, fewer workers. A job is answered with its number at once and goes on by itself; `moves` tells how far it
is. Who watches may leave.
"""
import asyncio
import collections
import dataclasses
import os
import signal
import time

from feedhandler import config as config_
from feedhandler import control, instance
from feedhandler.capacity import moves, rollover
from feedhandler.capacity.limits import STANDBY
from feedhandler.capacity.order import MOVE
from feedhandler.capacity.plan import PlanError
from feedhandler.supervisor import instruments
from feedhandler.venue import Channel

TICK_S = 0.05
GATHER_S = 0.005         # what is said within is carried on, and saved, at once
ROLL_LOOK_S = 1.0        # how often rollovers are looked for
REPLAN_AFTER_S = 0.5     # a plan that became necessary by itself waits for what else happens
REPLAN_PAUSE_S = 2.0     # and is not made oftener; until then lines and standbys may be missing
JOB_MAX = 50             # that are remembered
PROBLEM_MAX = 20         # sentences of a job
EMPTY_TRIES = 3          # plans that are made until a worker is empty
UP_TIMEOUT_S = 30.0      # a renewed worker is up by then
LEAVE_S = 0.05           # the answer has left by then


class JobError(Exception):
    """A job that cannot go on; the text says why."""


@dataclasses.dataclass(slots=True)
class Job:
    """One request that takes its time. state: running, done, failed."""
    id: int
    verb: str
    state: str = "running"
    text: str = ""               # what it does now, or how it ended
    total: int = 0
    done: int = 0
    failed: int = 0
    problems: list = dataclasses.field(default_factory=list)
    begun_ns: int = dataclasses.field(default_factory=time.time_ns)
    ended_ns: int = 0


class Moves:
    """chief is the Supervisor: its shards, crew, config and log are what this works on."""

    def __init__(self, chief):
        self.chief = chief
        self.jobs = collections.OrderedDict()    # id → Job
        self.agenda = None           # of the one long job that runs, as plain data: what is left of it
        self.leaving = False         # this supervisor ends for another one; the workers stay
        self.replan_s = None         # when to plan again, of itself
        self.replanned_s = -1e9
        self.looked_s = 0.0
        self.carrying = None         # timer of carry(), while something waits for it
        self.adopted = set()         # numbers of workers that lived before us, and have not told us all yet
        self.rolled = {}             # address → when a rollover was begun there last, wall clock

    @property
    def mover(self):
        return self.chief.shards.mover

    # -- carrying out ----------------------------------------------------------------------------------------------

    def carry(self):
        """Save, then do what the moves ask for; what takes over from the dead goes first: it can be done again by anybody.
        False: there was nothing to do, and nothing was saved."""
        if self.carrying is not None:
            self.carrying.cancel()
            self.carrying = None
        actions = list(self.mover.take())
        if not actions:
            return False
        first = []
        while actions and isinstance(actions[0], moves.TakeOver):
            first.append(actions.pop(0))
            self.do_takeover(first[-1])
        changed = set()
        for action in actions:
            if isinstance(action, moves.Promoted):
                self.chief.shards.promoted(action.pairs)
            elif isinstance(action, moves.Shard):
                changed.add(action.worker)
            elif isinstance(action, moves.Finished):
                self.finished(action)
            elif isinstance(action, moves.Replan):
                self.replan_soon(action.reason)
        before = self.chief.shards.generation
        if changed:
            self.chief.shards.refresh(changed)
            for id in self.chief.states.keys() - self.chief.shards.streams.keys():
                del self.chief.states[id]        # placed again, it is what its worker says then
        self.save()
        for action in actions:
            step = getattr(self, f"do_{type(action).__name__.lower()}", None)
            if step is not None:
                step(action)
        for worker in self.chief.crew.workers:
            if worker.number in changed and worker.state == "UP":
                self.chief.tell_shard(worker)
            elif worker.generation == before:
                worker.generation = self.chief.shards.generation     # nothing of its own has changed
        return True

    def save(self):
        self.chief.save_plan()

    def say(self, number, message):
        workers = self.chief.crew.workers
        if number < len(workers) and workers[number].state == "UP":
            workers[number].say(message)

    def do_letgo(self, action):
        self.say(action.worker, control.LetGo(*action[1:]))

    def do_takeover(self, action):
        self.say(action.worker, control.TakeOver(*action[1:]))

    def do_ask(self, action):
        self.say(action.worker, control.AskReady(action.instrument))

    def do_rotate(self, action):
        self.chief.log("rotated", worker=action.worker, connection=action.connection, reason="the address has no room for one connection more")
        self.say(action.worker, control.Rotate(action.connection))

    def do_replace(self, action):
        worker = self.chief.crew.workers[action.worker]
        self.chief.log("worker_silent", worker=worker.number, pid=worker.pid, reason=action.reason)
        os.kill(worker.pid, signal.SIGKILL)

    def finished(self, action):
        step, job = action.step, self.jobs.get(action.step.job)
        if step.kind in (MOVE, moves.TAKE) or not action.ok:
            self.chief.log("moved" if action.ok else "move_failed", kind=step.kind, instrument=step.instrument, from_worker=step.source,
                           to_worker=step.target, streams=len(step.streams), reason=action.reason)
        if job is not None:
            job.done, job.failed = job.done + action.ok, job.failed + (not action.ok)
            if not action.ok and len(job.problems) < PROBLEM_MAX:
                job.problems.append(f"{step.streams[0][0][2]}: {action.reason}")
            if job.state == "running" and self.agenda_of(job) is None and job.done + job.failed >= job.total:
                self.end(job)

    async def run(self):
        """The clock of the moves."""
        while True:
            await asyncio.sleep(TICK_S)
            now = time.monotonic()
            self.mover.tick(now)
            if now - self.looked_s >= ROLL_LOOK_S:
                self.looked_s = now
                self.look_for_rollovers()
            if self.replan_s is not None and now >= self.replan_s and not self.mover.flying and not self.mover.queue:
                self.replan_s, self.replanned_s = None, now
                self.chief.plan_again()
            self.carry()

    def replan_soon(self, reason):
        if self.replan_s is None:
            self.replan_s = max(time.monotonic() + REPLAN_AFTER_S, self.replanned_s + REPLAN_PAUSE_S)
            self.chief.log("plan_due", reason=reason)

    # -- what workers say --------------------------------------------------------------------------------------------

    def heard(self, event, *arguments):
        """What a worker said; answers to many requests are carried on together."""
        event(time.monotonic(), *arguments)
        self.mover.pump(time.monotonic())
        if self.carrying is None:
            self.carrying = asyncio.get_running_loop().call_later(GATHER_S, self.carry)

    def on_ready(self, worker, message):
        self.heard(self.mover.heard_ready, worker.number, message.instrument, message.floors, message.quiet)

    def on_letgone(self, worker, message):
        self.heard(self.mover.heard_let_gone, worker.number, message.instrument, message.handover, message.ok, message.reason)

    def on_takenover(self, worker, message):
        self.chief.log("taken_over", worker=worker.number, instrument=message.instrument, ok=message.ok, state=message.state, reason=message.reason,
                       after_us=message.after_ns // 1000)
        self.heard(self.mover.heard_taken_over, worker.number, message.instrument, message.ok, message.reason)

    def on_moved(self, worker, message):
        key = self.key_of(message.stream)
        if key is not None:
            self.heard(self.mover.heard_moved, worker.number, key, message.connection, message.ok, message.reason)

    def on_closing(self, worker, message):
        """The venue announced its end: its streams go elsewhere at once, ahead of everything."""
        self.chief.log("closing", worker=worker.number, connection=message.connection, reason=message.reason, lead_s=message.lead_s)
        self.roll(message.connection, f"the venue closes connection {message.connection}: {message.reason}", urgent=True)
        self.start()

    def on_states(self, worker, states):
        """States of streams that are held in private: by their own id, also at the new end of a move."""
        for state in states:
            key = self.key_of(state.id)
            if key is not None and (key[3] == STANDBY or worker.number != self.chief.shards.home_of[state.id][1]):
                self.heard(self.mover.heard_stream, worker.number, key, state.state, state.reason)

    def on_whole(self, worker, states):
        """All that a worker has: what it said to the supervisor before, that streams have moved, can be seen from it."""
        if worker.number in self.adopted:
            self.adopted.discard(worker.number)
            self.heard(self.mover.heard_lingering, worker.number, {self.key_of(id) for id in states.lingering})

    def key_of(self, id):
        stream = self.chief.shards.streams.get(id)
        return None if stream is None else self.chief.shards.key_of[id]

    def on_worker_up(self, worker):
        self.mover.came_up(time.monotonic(), worker.number)
        self.carry()

    def on_worker_down(self, worker):
        self.mover.went_down(time.monotonic(), worker.number)
        self.carry()

    # -- rollovers -----------------------------------------------------------------------------------------------------

    def ages(self):
        """{address: [(connection, opened, lifetime)]} of what is up, ages, and is not being replaced; wall clock, seconds."""
        shards, found = self.chief.shards, {}
        going = {source for step in (*self.mover.flying.values(), *self.mover.queue) if step.fresh for _, source, _ in step.streams}
        for connection in shards.placement.connections:
            home = shards.homes[connection.venue]
            lifetime_s = home.typed[connection.endpoint].lifetime_s
            _, session = self.chief.sessions.get(connection.id, (0, None))
            if lifetime_s and session is not None and session.state == "UP" and session.opened_ns and connection.id not in going and connection.streams:
                found.setdefault(home.connect_key(connection.endpoint), []).append((connection.id, session.opened_ns / 1e9, lifetime_s))
        return found

    def replaced_s(self, connection, session):
        """Seconds until it is replaced at the latest, for its age; None: it never is, or is not up."""
        lifetime_s = self.chief.shards.homes[connection.venue].typed[connection.endpoint].lifetime_s
        if not lifetime_s or session.state != "UP" or not session.opened_ns:
            return None
        return round(session.opened_ns / 1e9 + lifetime_s * (1 - rollover.MARGIN) - time.time(), 1)

    def look_for_rollovers(self):
        now = time.time()
        for address, connections in self.ages().items():
            last_s = self.rolled.setdefault(address, now - rollover.SPACING_S if self.chief.ready else now)
            id, when = rollover.coming(connections, now, last_s)
            if id is not None and now >= when:
                self.roll(id, "the venue cuts it for its age")

    def roll(self, id, reason, urgent=False):
        """All streams of a connection to a fresh one of the same worker."""
        found = self.mover.connections.get(id)
        if found is None or not found.streams:
            return
        self.rolled[self.chief.shards.homes[found.venue].connect_key(found.endpoint)] = time.time()
        self.mover.add(0, MOVE, [(want.key, id, 0) for want in found.streams], reason, found.worker, found.worker, fresh=True, urgent=urgent)

    # -- jobs ----------------------------------------------------------------------------------------------------------

    def begin(self, verb, text=""):
        job = Job(max(self.jobs, default=0) + 1, verb, text=text)
        self.jobs[job.id] = job
        while len(self.jobs) > JOB_MAX:
            self.jobs.popitem(last=False)
        return job

    def end(self, job, said=""):
        if job.state != "running":
            return
        job.state, job.ended_ns = "failed" if said or job.failed else "done", time.time_ns()
        job.text = said or (f"{job.failed} of {job.total} moves were not made" if job.failed else "done")
        if said and len(job.problems) < PROBLEM_MAX:
            job.problems.append(said)
        self.chief.log("job", id=job.id, verb=job.verb, state=job.state, text=job.text)

    def agenda_of(self, job):
        return self.agenda if self.agenda is not None and self.agenda["job"] == job.id else None

    def alone(self):
        """ValueError while another long job runs: two would undo each other."""
        if not self.chief.planned:
            raise ValueError("the first plan is not made yet: the venues' instrument lists are awaited; ask again in a moment")
        running = next((job for job in self.jobs.values() if job.state == "running" and job.verb != "subs move"), None)
        if running is not None:
            raise ValueError(f"{running.verb} (job {running.id}) is running; wait until it ends: feedhandler moves -n {self.chief.name}")

    def planned(self, job, improve):
        """Plan, and let its moves begin; the Plan. PlanError: it does not fit, nothing was changed."""
        found = self.chief.shards.replan(improve, job.id)
        job.total += len(found.moves)
        self.start()
        return found

    def rebalance(self, arguments):
        """What `plan` proposes is done, in its order. arguments: dry_run."""
        if arguments.get("dry_run"):
            return {**self.chief.plan({}), "job": None}
        self.alone()
        document = self.chief.plan({})
        job = self.begin("rebalance")
        try:
            self.planned(job, improve=True)
        except PlanError as error:
            self.end(job, "; ".join(error.problems))
            raise ValueError("what is wanted does not fit: " + "; ".join(error.problems[:PROBLEM_MAX])) from None
        if not job.total:
            self.end(job)
        return {**document, "job": job.id}

    def move(self, arguments):
        """arguments: venue, symbols, channels, and to_worker or to_connection."""
        shards, mover = self.chief.shards, self.mover
        venue, symbols, channels = (arguments.get(key) or [] for key in ("venue", "symbols", "channels"))
        worker, connection = arguments.get("to_worker"), arguments.get("to_connection")
        if (worker is None) == (connection is None):
            raise ValueError("say where to: --to-worker N or --to-connection ID")
        if worker is not None and channels:
            raise ValueError("an instrument is moved to another worker with all its streams; leave the channels out")
        wants = self.named(venue, symbols, channels)
        if worker is not None:
            self.worker(worker)
            if worker in shards.drained:
                raise ValueError(f"worker {worker} is drained; first: feedhandler drain {worker} --undo -n {self.chief.name}")
            rows = self.rows_to_worker(wants, worker)
        else:
            rows = self.rows_to_connection(wants, connection)
        if not rows:
            raise ValueError(f"nothing to do: all of it is on {'worker' if connection is None else 'connection'} {worker if connection is None else connection} already")
        job = self.begin("subs move")
        for streams, source, target in rows:
            mover.add(job.id, MOVE, streams, "asked for", source, target)
        job.total = len(rows)
        self.start()
        return {"name": self.chief.name, "job": job.id, "moves": [
            {"instrument": shards.master.rows[mover.wants[streams[0][0]].instrument]["canonical"], "streams": len(streams), "from_worker": source,
             "to_worker": target} for streams, source, target in rows if streams[0][0] in mover.wants]}

    def named(self, venue, symbols, channels):
        """Wanted streams that words name, without standbys'. ValueError names what is not there."""
        shards = self.chief.shards
        if venue not in shards.homes:
            raise ValueError(f"nothing is subscribed at {venue}; see feedhandler subs list -n {self.chief.name}")
        held = [want for want in self.mover.wants.values() if want.venue == venue and want.line != STANDBY]
        words = {text: Channel.parse(text).name for text in channels}
        found = []
        for symbol in symbols:
            fold = symbol.casefold()
            mine = [want for want in held if fold in (shards.master.rows[want.instrument][name].casefold() for name in ("symbol", "canonical"))]
            if not mine:
                near = instruments.near(symbol, {shards.master.rows[want.instrument]["canonical"] for want in held})
                raise ValueError(f"{venue}: {symbol} is not subscribed{near}; see feedhandler subs list -n {self.chief.name}")
            for text, name in words.items():
                if not any(want.channel == name for want in mine):
                    raise ValueError(f"{venue}: {symbol} has no {text} subscribed; see feedhandler subs list -n {self.chief.name}")
            found += [want for want in mine if not words or want.channel in words.values()]
        return list(dict.fromkeys(found))

    def rows_to_worker(self, wants, worker):
        groups = {}
        for want in wants:
            groups.setdefault(want.instrument, []).append([want.key, self.mover.home[want.key], 0])
        homes = self.chief.shards.placement.workers
        return [(streams, homes[instrument], worker) for instrument, streams in groups.items() if homes[instrument] != worker]

    def rows_to_connection(self, wants, id):
        found = self.mover.connections.get(id)
        if found is None:
            raise ValueError(f"there is no connection {id}; see feedhandler conns -n {self.chief.name}")
        place, homes, rows = (found.venue, found.endpoint, found.line), self.chief.shards.placement.workers, []
        mine = [want for want in wants if (want.venue, want.endpoint, want.line) == place]
        if not mine:
            raise ValueError(f"connection {id} is of {found.venue}/{found.endpoint}, line {'AB'[found.line]}: none of these streams belongs there")
        for want in mine:
            if homes[want.instrument] != found.worker:
                raise ValueError(f"connection {id} is worker {found.worker}'s, {want.wire} is worker {homes[want.instrument]}'s: an instrument moves as a "
                                 f"whole, with --to-worker {found.worker}")
            if self.mover.home[want.key] != id:
                rows.append(([[want.key, self.mover.home[want.key], id]], found.worker, found.worker))
        return rows

    def worker(self, number):
        if type(number) is not int or not 0 <= number < len(self.chief.crew.workers):
            raise ValueError(f"there is no worker {number}; there are 0 to {len(self.chief.crew.workers) - 1}")
        return number

    # -- emptying workers ----------------------------------------------------------------------------------------------

    def drain(self, arguments):
        """All instruments leave a worker, and it is given none until undo. arguments: worker, undo."""
        number, drained = self.worker(arguments.get("worker")), self.chief.shards.drained
        if arguments.get("undo"):
            if number not in drained:
                raise ValueError(f"worker {number} is not drained; drained are: {', '.join(map(str, sorted(drained))) or 'none'}")
            drained.discard(number)
            self.replan_soon(f"worker {number} may hold standbys again")
            self.save()
            return {"name": self.chief.name, "worker": number, "drained": sorted(drained), "job": None, "moves": 0}
        self.alone()
        if number in drained and not self.left({number}):
            raise ValueError(f"nothing to do: worker {number} is drained already")
        job = self.begin("drain", f"worker {number} is emptied")
        self.agenda = {"kind": "drain", "job": job.id, "workers": [number]}
        self.empty(job, {number})
        self.go(job)
        return {"name": self.chief.name, "worker": number, "drained": sorted(drained), "job": job.id, "moves": job.total}

    def empty(self, job, workers):
        """Plan these workers empty. ValueError: the others have no room, and nothing was changed."""
        shards, before = self.chief.shards, set(self.chief.shards.drained)
        shards.drained |= workers
        named = " and ".join(map(str, sorted(workers)))
        try:
            if len(shards.drained) >= self.chief.config.instance.workers:
                raise PlanError(["no other worker may hold its instruments; set instance.workers higher and feedhandler reload"])
            self.planned(job, improve=False)
        except PlanError as error:
            shards.drained, self.agenda = before, None
            self.end(job, "; ".join(error.problems[:PROBLEM_MAX]))
            raise ValueError(f"worker {named} cannot be drained: " + "; ".join(error.problems[:PROBLEM_MAX]) + "; nothing was changed") from None

    def left(self, workers):
        """What these workers hold still, as a number of instruments."""
        placement = self.chief.shards.placement
        return sum(worker in workers for table in (placement.workers, placement.standbys) for worker in table.values())

    async def made(self, job):
        """Until no move of a job is left."""
        while any(step.job == job.id for step in (*self.mover.flying.values(), *self.mover.queue)):
            await asyncio.sleep(TICK_S)

    async def emptied(self, job, workers):
        """Until these workers hold nothing; JobError when they keep something after some plans."""
        for attempt in range(EMPTY_TRIES):
            await self.made(job)
            if not self.left(workers):
                return
            if attempt < EMPTY_TRIES - 1:
                try:
                    self.planned(job, improve=False)
                except PlanError as error:
                    raise JobError("; ".join(error.problems[:PROBLEM_MAX])) from None
        raise JobError(f"{self.left(workers)} instruments stay where they are: {(job.problems or ['no reason was given'])[-1]}")

    # -- agendas: long jobs, step by step ------------------------------------------------------------------------------

    def go(self, job):
        """Carry an agenda out in the background."""
        run = {"drain": self.run_drain, "shrink": self.run_shrink, "roll": self.run_roll}[self.agenda["kind"]]
        self.chief.start_task(self.run_agenda(job, run))

    async def run_agenda(self, job, run):
        try:
            await run(job, self.agenda)
            said = ""
        except (JobError, ValueError) as error:
            said = str(error)
        self.agenda = None
        if not said:
            job.failed = 0       # what failed was made good by another plan
        self.end(job, said)
        self.save()

    async def run_drain(self, job, agenda):
        try:
            await self.emptied(job, set(agenda["workers"]))
        except JobError:
            self.chief.shards.drained -= set(agenda["workers"])
            raise

    async def run_shrink(self, job, agenda):
        """The last workers are emptied, then they end."""
        chief, count = self.chief, agenda["count"]
        gone = set(range(count, len(chief.crew.workers)))
        try:
            await self.emptied(job, gone)
        finally:
            chief.shards.drained -= gone
        table = chief.config.instance.model_copy(update={"workers": count, "cpus": chief.config.instance.cpus[:count]})
        chief.config = chief.shards.config = chief.config.model_copy(update={"instance": table})
        self.save()
        await chief.crew.shrink(count)

    async def run_roll(self, job, agenda):
        """Each worker in turn: emptied, ended, started from our launcher, used again; then all is levelled."""
        chief, left = self.chief, agenda["left"]
        while left:
            number = left[0]
            if number < len(chief.crew.workers):
                job.text = f"worker {number} is emptied"
                self.empty_again(job, {number})
                try:
                    await self.emptied(job, {number})
                    job.text = f"worker {number} starts anew"
                    await chief.crew.renew(chief.crew.workers[number])
                    await self.worker_up(number)
                finally:
                    if number not in agenda["drained"]:
                        chief.shards.drained.discard(number)
                chief.log("worker_renewed", worker=number, pid=chief.crew.workers[number].pid)
            left.pop(0)
            self.save()
        job.text = "the load is levelled"
        try:
            self.planned(job, improve=True)
        except PlanError as error:
            raise JobError("; ".join(error.problems[:PROBLEM_MAX])) from None
        await self.made(job)

    def empty_again(self, job, workers):
        kept = self.agenda
        self.empty(job, workers)
        self.agenda = kept

    async def worker_up(self, number):
        deadline = time.monotonic() + UP_TIMEOUT_S
        while self.chief.crew.workers[number].state != "UP":
            if time.monotonic() > deadline:
                raise JobError(f"worker {number} did not come up within {UP_TIMEOUT_S:g} s: {self.chief.crew.workers[number].reason}")
            await asyncio.sleep(TICK_S)

    # -- more, fewer and new workers -------------------------------------------------------------------------------------

    def shrink(self, count):
        """Fewer workers: the number of the job that makes it so."""
        self.alone()
        gone = set(range(count, len(self.chief.crew.workers)))
        job = self.begin("reload", f"{len(gone)} workers are emptied")
        self.agenda = {"kind": "shrink", "job": job.id, "count": count}
        self.empty(job, gone)
        self.go(job)
        return job.id

    def restart(self, arguments):
        """This supervisor ends, its workers stay; the next one adopts them and renews each in turn."""
        chief = self.chief
        self.alone()
        usable = [worker.number for worker in chief.crew.workers if worker.state == "UP" and worker.number not in chief.shards.drained]
        if len(usable) < 2:
            raise ValueError("a rolling restart needs a second worker that holds the first one's streams meanwhile; set instance.workers = 2 and "
                             "feedhandler reload, or restart without --rolling")
        try:
            config_.load(chief.path)
        except (config_.ConfigError, OSError) as error:
            raise ValueError(f"{error}\nthe next supervisor would not start; correct {chief.path} first") from None
        job = self.begin("restart", "the supervisor is replaced")
        self.agenda = {"kind": "roll", "job": job.id, "left": [worker.number for worker in chief.crew.workers], "drained": sorted(chief.shards.drained)}
        self.save()
        self.leaving = True
        asyncio.get_running_loop().call_later(LEAVE_S, chief.ending.set)
        return {"name": chief.name, "job": job.id, "pid": os.getpid(), "config": chief.path, "workers": len(chief.crew.workers)}

    # -- telling ---------------------------------------------------------------------------------------------------------

    def document(self, arguments):
        """Jobs, newest first, and moves in flight. arguments: job, only that one."""
        wanted, now = arguments.get("job"), time.monotonic()
        if wanted is not None and wanted not in self.jobs:
            raise ValueError(f"there is no job {wanted}; there are {', '.join(map(str, self.jobs)) or 'none'}")
        rows = [dataclasses.asdict(job) for job in reversed(self.jobs.values()) if wanted in (None, job.id)]
        flying = [{"move": step.number, "job": step.job, "kind": step.kind, "phase": step.phase, "streams": len(step.streams),
                   "wire": step.streams[0][0][2], "venue": step.streams[0][0][0], "from_worker": step.source, "to_worker": step.target,
                   "from": step.streams[0][1] or None, "to": step.streams[0][2] or None, "seconds": round(now - step.since_s, 1),
                   "reason": step.reason} for step in self.mover.flying.values() if wanted in (None, step.job)]
        return {"name": self.chief.name, "jobs": rows, "in_flight": flying, "waiting": len(self.mover.queue),
                "drained": sorted(self.chief.shards.drained),
                "standbys": {"ready": len(self.mover.ready), "total": len(self.chief.shards.placement.standbys)}}

    # -- over the death of a supervisor ------------------------------------------------------------------------------------

    def saved(self):
        return {"jobs": [dataclasses.asdict(job) for job in self.jobs.values()], "agenda": self.agenda}

    def restore(self, document):
        """What saved() gave. ValueError where it is damaged."""
        try:
            self.jobs = collections.OrderedDict((row["id"], Job(**row)) for row in document["jobs"])
            self.agenda = document["agenda"]
        except (TypeError, KeyError) as error:
            raise ValueError(f"the jobs are damaged: {error!r}") from None

    def resume(self, living):
        """Go on where the supervisor before was; living: numbers of the workers that live."""
        now, self.adopted = time.monotonic(), set(living)
        self.mover.up |= self.adopted
        for worker in self.chief.crew.workers:
            if worker.number not in living:
                self.mover.went_down(now, worker.number)
        if living:
            self.carry()

    def go_on(self):
        """With what the supervisor before had begun: its long job, and a plan that was due."""
        if self.agenda is not None:
            self.go(self.jobs[self.agenda["job"]])
        missing = self.chief.shards.wants.keys() - self.mover.home.keys()
        if missing:
            self.replan_soon(f"{len(missing)} wanted streams have no place")
        for job in self.jobs.values():
            if job.state == "running" and self.agenda_of(job) is None and job.done + job.failed >= job.total:
                self.end(job)

    def start(self):
        """Begin what was asked for; what has to wait outlives this supervisor too."""
        self.mover.pump(time.monotonic())
        if not self.carry():
            self.save()
