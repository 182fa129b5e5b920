"""The workers of an instance: started, watched, replaced, adopted, stopped.

A dead worker is seen through its pidfd, a hung one through the heartbeat in its counters. A worker that dies too often
is left down (quarantined) and the others are not touched.
"""
import asyncio
import collections
import contextlib
import os
import signal
import time

import psutil

from feedhandler import control, instance
from feedhandler.counters import Counters
from feedhandler.worker.launcher import Launcher, LauncherError
from feedhandler.worker.worker import WorkerOptions

CONNECT_TIMEOUT_S = 10.0     # from the fork to the first message
CONNECT_PAUSE_S = 0.002
LOOK_PERIOD_S = 0.1          # heartbeats
STARTING_GRACE_S = 5.0       # before the first heartbeat counts
READ_SIZE = 1 << 16
SOCKET_GRACE_S = 0.2
STOP_GRACE_S = 2.0           # beyond the drain, before SIGKILL


class Worker:
    """One worker as the supervisor knows it. state: STARTING, UP, DOWN, QUARANTINED."""

    def __init__(self, number, cpu):
        self.number, self.cpu = number, cpu
        self.pid = self.pid_start = self.epoch = self.generation = 0
        self.pidfd = self.writer = self.task = self.counters = None
        self.state, self.reason = "DOWN", "not started"
        self.since_ns = self.started_ns = time.monotonic_ns()
        self.deaths = collections.deque()
        self.restarts = 0
        self.behind = ""             # why it does not keep up, as it says
        self.adopted = False
        self.planned_end = ""        # why its end is not a death: it was asked to
        self.dead = asyncio.Event()
        self.process = None          # psutil's view of it, made when usage() is asked

    def say(self, message):
        """To the worker, if it is connected; what it misses it asks for again."""
        if self.writer is not None and not self.writer.is_closing():
            self.writer.write(control.encode(message))

    def set(self, state, reason=""):
        self.state, self.reason, self.since_ns = state, reason, time.monotonic_ns()
        if state == "UP":
            self.usage()             # what is asked later is counted from here

    def heartbeat_age_ms(self):
        """Since its last sign of life; None: not known."""
        if self.counters is None or not self.counters.heartbeat_ns:
            return None
        return max(0, time.monotonic_ns() - self.counters.heartbeat_ns) / 1e6

    def usage(self):
        """CPU since this was last asked (100: one whole CPU) and resident memory; None while there is no process."""
        if self.process is None or self.process.pid != self.pid:
            self.process = psutil.Process(self.pid) if self.pid and psutil.pid_exists(self.pid) else None
        try:
            with self.process.oneshot() if self.process else contextlib.nullcontext():
                return {"cpu_percent": self.process and round(self.process.cpu_percent(), 1),
                        "rss_bytes": self.process and self.process.memory_info().rss}
        except psutil.NoSuchProcess:
            return {"cpu_percent": None, "rss_bytes": None}


class Crew:
    """chief has: config, name, log, on_worker_up(worker), on_worker_down(worker), on_message(worker, message), on_crew_changed()."""

    def __init__(self, chief, generation):
        self.chief, self.generation = chief, generation
        cpus = chief.config.instance.cpus
        self.workers = [Worker(number, cpus[number] if cpus else None) for number in range(chief.config.instance.workers)]   # always 0..n-1
        self.launcher, self.launching = None, asyncio.Lock()
        self.stopping = False
        self.tasks = set()

    def options(self, worker):
        config = self.chief.config
        return WorkerOptions(instance.directory(self.chief.name), self.chief.name, worker.number, worker.cpu, config.instance.spin,
                             config.ring.slots, config.instruments.max, config.books.levels, config.instance.frame_size_max,
                             config.instance.strict_utf8, self.generation)

    async def start(self, living=()):
        """Adopt the living workers of a manifest and fork the others."""
        for row in living:
            if row["worker"] < len(self.workers):
                worker = self.workers[row["worker"]]
                worker.adopted = True
                self._watch(worker, row["pid"], row["pid_start"])
        async with self.launching:
            self.launcher = await Launcher.start()
        for worker in self.workers:
            if not worker.pid:
                await self._fork(worker)
        self.chief.on_crew_changed()
        self._background(self._look())

    # -- more, fewer, and new ones ---------------------------------------------------------------------------------------

    async def grow(self):
        """Fork the workers that the configuration has and we have not."""
        cpus = self.chief.config.instance.cpus
        fresh = [Worker(number, cpus[number] if cpus else None) for number in range(len(self.workers), self.chief.config.instance.workers)]
        self.workers += fresh
        for worker in fresh:
            await self._fork(worker)
        self.chief.on_crew_changed()

    async def shrink(self, count):
        """End the workers from number `count` on; they hold nothing any more."""
        gone = self.workers[count:]
        for worker in gone:
            await self._end(worker, "it is no more")
        del self.workers[count:]
        self.chief.on_crew_changed()

    async def renew(self, worker):
        """End a worker that holds nothing and fork another in its place."""
        await self._end(worker, "it is renewed")
        worker.adopted = False
        await self._fork(worker)
        self.chief.on_crew_changed()

    async def _end(self, worker, reason):
        """Ask it to end, kill it if it does not; that is no death."""
        worker.planned_end = reason
        worker.deaths.clear()
        if worker.pidfd is not None:
            worker.say(control.Stop(0.0))
            if not await _all_dead([worker], STOP_GRACE_S):
                self.chief.log("worker_killed", worker=worker.number, pid=worker.pid)
                os.kill(worker.pid, signal.SIGKILL)
                await worker.dead.wait()
        worker.planned_end = ""

    def _background(self, coroutine):
        task = asyncio.get_running_loop().create_task(coroutine)
        self.tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task):
        self.tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.chief.on_failure(task.exception())

    async def _fork(self, worker):
        """A new process for this worker, one at a time; a launcher that is not there yet or died is started first."""
        async with self.launching:
            try:
                if self.launcher is None:
                    self.launcher = await Launcher.start()
                pid = await self.launcher.fork(self.options(worker))
            except (LauncherError, OSError, asyncio.TimeoutError) as error:
                self.chief.log("launcher_lost", reason=str(error))
                if self.launcher is not None:
                    with contextlib.suppress(ProcessLookupError):
                        self.launcher.process.kill()
                self.launcher = await Launcher.start()
                pid = await self.launcher.fork(self.options(worker))
        self._watch(worker, pid, instance.pid_start(pid))

    def _watch(self, worker, pid, start):
        worker.pid, worker.pid_start, worker.started_ns = pid, start, time.monotonic_ns()
        worker.dead = asyncio.Event()
        worker.counters = None
        worker.set("STARTING")
        try:
            worker.pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            self._background(self._after_death(worker))
            return
        asyncio.get_running_loop().add_reader(worker.pidfd, self._died, worker)
        worker.task = self._background(self._talk(worker))

    # -- one worker's socket -----------------------------------------------------------------------------------------

    async def _talk(self, worker):
        """Connect, then hand on everything the worker says until one side ends. One that cannot be understood is replaced."""
        reader, worker.writer = await self._connect(worker)
        decoder = control.Decoder(control.FROM_WORKER)
        reason = "it closed its control socket"
        try:
            while data := await reader.read(READ_SIZE):
                for message in decoder.feed(data):
                    self._said(worker, message)
        except ConnectionError as error:
            reason = f"its control socket broke: {error}"
        except ValueError as error:  # a damaged frame; msgspec's errors are of this kind too
            reason = f"it said what cannot be understood: {error}"
        worker.writer.close()
        await asyncio.sleep(SOCKET_GRACE_S)  # a dying worker closes its socket just before its pidfd says so, which ends this task
        if instance.alive(worker.pid, worker.pid_start) and not self.stopping:
            self.chief.log("worker_silent", worker=worker.number, pid=worker.pid, reason=reason)
            os.kill(worker.pid, signal.SIGKILL)

    def _said(self, worker, message):
        if isinstance(message, control.Hello):
            self._hello(worker, message)
        else:
            self.chief.on_message(worker, message)

    async def _connect(self, worker):
        deadline = time.monotonic() + CONNECT_TIMEOUT_S
        path = instance.worker_socket_path(self.chief.name, worker.number)
        while True:
            try:
                return await asyncio.open_unix_connection(path)
            except (FileNotFoundError, ConnectionRefusedError):
                if time.monotonic() > deadline:
                    self.chief.log("worker_silent", worker=worker.number, pid=worker.pid, reason="it opened no control socket")
                    os.kill(worker.pid, signal.SIGKILL)
                    await worker.dead.wait()
            await asyncio.sleep(CONNECT_PAUSE_S)

    def _hello(self, worker, hello):
        if hello.worker != worker.number or hello.pid != worker.pid:
            raise ValueError(f"worker-{worker.number}.sock is answered by worker {hello.worker}, pid {hello.pid}, expected pid {worker.pid}")
        worker.epoch, worker.generation = hello.epoch, hello.generation
        worker.counters = Counters(instance.directory(self.chief.name), worker.number)
        worker.set("UP")
        self.chief.log("worker_up", worker=worker.number, pid=worker.pid, adopted=worker.adopted,
                       after_ms=round((time.monotonic_ns() - worker.started_ns) / 1e6, 1))
        self.chief.on_worker_up(worker)

    # -- death -------------------------------------------------------------------------------------------------------

    def _died(self, worker):
        asyncio.get_running_loop().remove_reader(worker.pidfd)
        os.close(worker.pidfd)
        worker.pidfd = None
        worker.dead.set()
        worker.task.cancel()
        if worker.writer is not None:
            worker.writer.close()
            worker.writer = None
        if self.stopping:
            worker.set("DOWN", "stopped")
        elif worker.planned_end:
            worker.set("DOWN", worker.planned_end)
            self.chief.on_worker_down(worker)
        else:
            self._background(self._after_death(worker))

    async def _after_death(self, worker):
        """Count the death and replace the worker, or leave it down when it dies too often."""
        restart, now = self.chief.config.restart, time.monotonic()
        worker.dead.set()
        worker.deaths.append(now)
        while worker.deaths[0] < now - restart.window_s:
            worker.deaths.popleft()
        worker.set("DOWN", "it died")
        self.chief.on_worker_down(worker)
        if len(worker.deaths) >= restart.crashes:
            worker.set("QUARANTINED", f"it died {len(worker.deaths)} times within {restart.window_s:g} s")
            self.chief.log("worker_quarantined", worker=worker.number, reason=worker.reason)
        else:
            self.chief.log("worker_died", worker=worker.number, pid=worker.pid, deaths=len(worker.deaths))
            worker.restarts += 1
            worker.adopted = False
            await self._fork(worker)
        self.chief.on_crew_changed()

    async def _look(self):
        """Kill what hangs: its pidfd then says so, and it is replaced like any other."""
        while True:
            await asyncio.sleep(LOOK_PERIOD_S)
            for worker in self.workers:
                age_ms = worker.heartbeat_age_ms() if worker.pidfd is not None and worker.state == "UP" else None
                if age_ms is not None and age_ms > self.chief.config.restart.silent_ms:
                    self.chief.log("worker_hung", worker=worker.number, pid=worker.pid, silent_ms=round(age_ms))
                    worker.set("DOWN", "it hung")
                    os.kill(worker.pid, signal.SIGKILL)
            self.chief.on_look()

    # -- the end -----------------------------------------------------------------------------------------------------

    async def stop(self, drain_s):
        """Ask every worker to end, kill those that do not, end the launcher."""
        self.stopping = True
        for task in list(self.tasks):
            if task not in [worker.task for worker in self.workers]:
                task.cancel()
        running = [worker for worker in self.workers if worker.pidfd is not None]
        for worker in running:
            worker.say(control.Stop(drain_s))
            if worker.writer is None:
                os.kill(worker.pid, signal.SIGTERM)
        if not await _all_dead(running, drain_s + STOP_GRACE_S):
            for worker in running:
                if not worker.dead.is_set():
                    self.chief.log("worker_killed", worker=worker.number, pid=worker.pid)
                    os.kill(worker.pid, signal.SIGKILL)
            await _all_dead(running, STOP_GRACE_S)
        await asyncio.gather(*self.tasks, return_exceptions=True)
        if self.launcher is not None:
            await self.launcher.close()


async def _all_dead(workers, timeout_s):
    if not workers:
        return True
    _, late = await asyncio.wait([asyncio.ensure_future(worker.dead.wait()) for worker in workers], timeout=timeout_s)
    for task in late:
        task.cancel()
    return not late
