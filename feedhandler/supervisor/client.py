"""Asking a supervisor, from the command line: one request, one answer. Imports nothing heavy."""
import socket

from feedhandler import control, instance

READ_SIZE = 1 << 16


class NotRunning(Exception):
    """No supervisor answers; .manifest is what it left behind, or None."""

    def __init__(self, text, manifest=None):
        super().__init__(text)
        self.manifest = manifest


class Refused(Exception):
    """The supervisor answered with an error sentence."""


def request(name, verb, arguments=None, timeout_s=5.0):
    """The result of a verb. NotRunning or Refused, each with what to do next."""
    path = instance.control_path(name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(timeout_s)
        try:
            sock.connect(path)
            sock.sendall(control.encode(control.Request(verb, arguments or {})))
            return _answer(sock, name)
        except (FileNotFoundError, ConnectionRefusedError, ConnectionResetError, BrokenPipeError):
            raise _not_running(name) from None
        except PermissionError:
            raise Refused(f"instance {name!r} belongs to another user; run this as its owner") from None
        except TimeoutError:
            raise Refused(f"the supervisor of {name!r} did not answer within {timeout_s:g} s (pid {instance.holder(name)}); "
                          f"look at {instance.directory(name)}/{instance.LOG}") from None


def _answer(sock, name):
    decoder = control.Decoder(control.Answer)
    while data := sock.recv(READ_SIZE):
        for answer in decoder.feed(data):
            if not answer.ok:
                raise Refused(answer.error)
            return answer.result
    raise _not_running(name)


def _not_running(name):
    try:
        manifest = instance.manifest_read(name)
    except (FileNotFoundError, instance.InstanceError):
        manifest = None
    living = instance.workers_alive(manifest) if manifest else []
    if living:
        return NotRunning(f"the supervisor of {name!r} is dead, {len(living)} of {len(manifest['workers'])} workers go on and readers lose nothing; "
                          f"adopt them with feedhandler start -n {name}, or end them with feedhandler stop -n {name}", manifest)
    running = ", ".join(other for other in instance.names() if instance.locked(other)) or "none"
    left = f"a crashed run left {instance.directory(name)}; the next start removes it. " if manifest else ""
    return NotRunning(f"no instance {name!r} is running (running: {running}). {left}Start it with feedhandler start -n {name}", None)
