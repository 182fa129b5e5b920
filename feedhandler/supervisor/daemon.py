"""From a command to a running supervisor: read the configuration, take the name, run, and report once.

`python -m feedhandler.supervisor CONFIG NAME REPORT_FD` is what `feedhandler start` runs, in a session of its own. The
report is one line of JSON: {"code": exit code, "text": sentence, "status": document or null}.
"""
import asyncio
import errno
import json
import os
import sys

from feedhandler import instance

OK, FAILED, USAGE, DEGRADED = 0, 1, 2, 4


def run(path, name, report, foreground=False):
    """Run the instance of a configuration file to its end; report(document) is called once, ready or refused. Exit code."""
    from feedhandler import config as config_
    try:
        config = config_.load(path)
    except config_.ConfigError as error:
        return _report(report, USAGE, f"{error}\n{len(error.problems)} problem{'s' * (len(error.problems) > 1)}; nothing was started")
    except OSError as error:
        return _report(report, USAGE, f"{path} cannot be read: {error.strerror}; write one with feedhandler init")
    name = name or config.instance.name
    try:
        lock = instance.Lock.take(name)
    except (instance.InstanceError, OSError) as error:
        return _report(report, FAILED, str(error))
    try:
        return _supervise(config, name, os.path.abspath(path), lock, report, foreground)
    finally:
        lock.release()


def _report(report, code, text, status=None):
    report({"code": code, "text": text, "status": status})
    return code


def _supervise(config, name, path, lock, report, foreground):
    from feedhandler.supervisor.log import Log
    from feedhandler.supervisor.supervisor import StartError, Supervisor
    log = Log()
    log.to_stderr = foreground

    def ready(status):
        _report(report, DEGRADED if status["reasons"] else OK, status["note"], status)

    async def main():
        await Supervisor(config, name, path, lock, log, ready).run()
    try:
        asyncio.run(main())
    except (StartError, instance.InstanceError) as error:
        return _report(report, FAILED, str(error))
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return _report(report, FAILED, f"/dev/shm is full ({instance.space_free():,} bytes free): {error.filename}; lower ring.slots or enlarge it")
        return _report(report, FAILED, f"{type(error).__name__}: {error}")
    except Exception as error:  # a defect of ours: its trace would go to a file that is removed with the instance
        _report(report, FAILED, f"the supervisor failed before it was ready: {type(error).__name__}: {error}; --foreground shows where")
        raise
    return OK


def to_descriptor(fd):
    """A report() that writes one line to a pipe and closes it."""
    def report(document):
        with os.fdopen(fd, "w") as pipe:
            pipe.write(json.dumps(document) + "\n")
    return _once(report)


def _once(function):
    called = []

    def once(document):
        if not called:
            called.append(document)
            function(document)
    return once


def main():
    path, name, fd = sys.argv[1:4]
    os.umask(0o027)
    sys.exit(run(path, name, to_descriptor(int(fd))))
