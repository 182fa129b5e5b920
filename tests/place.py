"""A living instance over simulated venues, run by the product's own commands. For tests of the command line and documents."""
import contextlib
import itertools
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

PRODUCT = pathlib.Path(__file__).resolve().parent.parent
WAIT_S = 20.0
_numbers = itertools.count()


def environment(folder):
    """Of a process that finds the sources, and keeps its budgets in folder."""
    return {**os.environ, "PYTHONPATH": str(PRODUCT), "XDG_STATE_HOME": str(folder)}


def feedhandler(*words, folder, timeout=60, **options):
    """A finished `feedhandler` command."""
    return subprocess.run([sys.executable, "-m", "feedhandler", *map(str, words)], capture_output=True, text=True, timeout=timeout,
                          env=environment(folder), **options)


@contextlib.contextmanager
def simulated(folder, *words):
    """Simulated venues; answers (instance name, path of the configuration that reads from them)."""
    name = f"test-{os.getpid()}-p{next(_numbers)}"
    config = pathlib.Path(folder) / f"{name}.toml"
    command = [sys.executable, "-m", "feedhandler", "simulate", *words, "--name", name, "--config-out", str(config), "--directory", str(folder)]
    with open(f"{folder}/{name}.log", "w+") as log:
        process = subprocess.Popen(command, env=environment(folder), stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + WAIT_S
            while not config.exists():   # written whole, by rename
                assert process.poll() is None and time.monotonic() < deadline, pathlib.Path(log.name).read_text()
                time.sleep(0.01)
            yield name, config
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(10)


@contextlib.contextmanager
def running(folder, *words):
    """An instance over simulated venues, stopped at the end; answers (its name, its configuration)."""
    with simulated(folder, *words) as (name, config):
        try:
            done = feedhandler("start", "-c", config, "--json", folder=folder)
            assert done.returncode == 0, (done.stdout, done.stderr)
            assert json.loads(done.stdout)["status"]["state"] == "ok"
            yield name, config
        finally:
            feedhandler("stop", "-n", name, folder=folder)
            assert not os.path.exists(f"/dev/shm/feedhandler-{name}"), "stop leaves nothing behind"
