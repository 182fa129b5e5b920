"""The fork server: a process with the worker's modules imported but no loop, thread or TLS state.

The supervisor starts it as `python -m feedhandler.worker.launcher FD` over a socketpair and asks for workers; each is a
fork, ready in milliseconds. Lines of JSON: {"options": {…}} → {"pid": n} or {"error": text}; and, when a worker ends,
{"exited": pid, "status": wait status}. Workers are sessions of their own and live on when the launcher or the supervisor
dies. The launcher ends when its socket closes.
"""
import asyncio
import collections
import dataclasses
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
import traceback

LINE_SIZE_MAX = 65536
REPLY_TIMEOUT_S = 10.0
START_TIMEOUT_S = 30.0


# -- the server ----------------------------------------------------------------------------------------------------

def serve(sock):
    """Answer requests until the socket closes."""
    from feedhandler import venues
    from feedhandler.worker import worker
    for name in venues.names():
        importlib.import_module(f"feedhandler.venues.{name.replace('-', '_')}")
    gc.collect()
    gc.freeze()                     # what is imported is shared by all workers and never looked at again
    wake_read, wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _say(sock, {"ready": os.getpid()})
    pending = b""
    while True:
        readable, _, _ = select.select([sock, wake_read], [], [])
        if wake_read in readable:
            os.read(wake_read, 4096)
            _reap(sock)
        if sock in readable:
            data = sock.recv(LINE_SIZE_MAX)
            if not data or len(pending) > LINE_SIZE_MAX:
                return
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                _request(sock, line, worker, (wake_read, wake_write))


def _request(sock, line, worker, wake_fds):
    try:
        options = worker.WorkerOptions(**json.loads(line)["options"])
        pid = os.fork()
    except (ValueError, TypeError, KeyError, OSError) as error:
        _say(sock, {"error": f"{type(error).__name__}: {error}"})
        return
    if pid == 0:
        _child(sock, options, worker, wake_fds)
    _say(sock, {"pid": pid})


def _child(sock, options, worker, wake_fds):
    """Become a worker: a session of our own, none of the launcher's descriptors or signals. Does not return."""
    code = 1
    try:
        os.setsid()
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        sock.close()
        os.closerange(3, max(int(name) for name in os.listdir("/proc/self/fd")) + 1)
        code = worker.run(options)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _reap(sock):
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        _say(sock, {"exited": pid, "status": status})


def _say(sock, answer):
    try:
        sock.sendall(json.dumps(answer).encode() + b"\n")
    except OSError:
        pass                        # the supervisor is gone; the loop sees the closed socket and ends


# -- the client ----------------------------------------------------------------------------------------------------

class LauncherError(Exception):
    """The launcher could not do what was asked; the text says what and why."""


class Launcher:
    """The supervisor's side. on_exit(pid, wait status) is called when a worker of this launcher ends."""

    def __init__(self, process, reader, writer, on_exit):
        self.process, self.writer, self.on_exit = process, writer, on_exit
        self.replies = collections.deque()          # futures, in the order of the requests
        self.task = asyncio.get_running_loop().create_task(self._read(reader))

    @classmethod
    async def start(cls, on_exit=None):
        """Start the launcher process and wait until it is ready to fork."""
        ours, theirs = socket.socketpair()
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "feedhandler.worker.launcher", str(theirs.fileno()), pass_fds=(theirs.fileno(),),
            stdin=asyncio.subprocess.DEVNULL, start_new_session=True)
        theirs.close()
        reader, writer = await asyncio.open_connection(sock=ours, limit=LINE_SIZE_MAX)
        ready = await asyncio.wait_for(reader.readline(), START_TIMEOUT_S)
        if not ready:
            raise LauncherError(f"the launcher ended with code {await process.wait()} before it was ready; its error is on stderr")
        return cls(process, reader, writer, on_exit)

    @property
    def pid(self):
        return self.process.pid

    async def fork(self, options):
        """A new worker with these WorkerOptions; its pid."""
        if self.task.done():
            raise LauncherError("the launcher is gone; start another one")
        reply = asyncio.get_running_loop().create_future()
        self.replies.append(reply)
        self.writer.write(json.dumps({"options": dataclasses.asdict(options)}).encode() + b"\n")
        answer = await asyncio.wait_for(reply, REPLY_TIMEOUT_S)
        if "pid" not in answer:
            raise LauncherError(f"worker {options.worker} was not started: {answer['error']}")
        return answer["pid"]

    async def close(self):
        """End the launcher; its workers go on."""
        self.writer.close()
        await self.task
        await self.process.wait()

    async def _read(self, reader):
        while line := await reader.readline():
            answer = json.loads(line)
            if "exited" in answer:
                if self.on_exit is not None:
                    self.on_exit(answer["exited"], answer["status"])
            elif self.replies:
                reply = self.replies.popleft()
                if not reply.done():
                    reply.set_result(answer)
        for reply in self.replies:
            if not reply.done():
                reply.set_result({"error": "the launcher is gone"})


if __name__ == "__main__":
    descriptor = int(sys.argv[1])
    connection = socket.socket(fileno=descriptor)
    connection.set_inheritable(False)
    serve(connection)
