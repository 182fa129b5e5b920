"""A worker is killed while data flows: when is it noticed, when is its successor ready, when is there fresh data?

Method: a simulated venue over TLS on loopback, one instance of two workers, SIGKILL to one of them after a random pause, 40 times
(10 with --quick). Noticed: the supervisor's `worker_died`. Ready: `worker_up`, the successor's first message over its control socket.
Fresh: ts_recv_ns of the first market record behind the successor's EPOCH. Each counts from the kill or from the notice, as it says.
"""
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import tempfile
import time
import tomllib

from bench.common import Row, Unavailable

KILLS, KILLS_QUICK = 40, 10
PAUSE_S = 0.3        # at most, between fresh data and the next kill
WAIT_S = 20.0
REFERENCE_MS = 207   # a fresh interpreter that imports what a worker needs (reference: operations)
STATUS, EPOCH = 32, 7
PRODUCT = pathlib.Path(__file__).parents[1]


def run(quick=False):
    from feedhandler import instance
    name = f"bench-{os.getpid()}"
    with tempfile.TemporaryDirectory() as folder:
        env = {**os.environ, "PYTHONPATH": str(PRODUCT), "XDG_STATE_HOME": folder}
        simulator = subprocess.Popen(
            [sys.executable, "-m", "feedhandler", "simulate", "--venue", "deribit", "--venue", "binance-spot", "--instruments", "4", "--rate", "2000",
             "--no-limits", "--directory", folder, "--config-out", f"{folder}/given.toml", "--json"], env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        try:
            simulator.stdout.readline()
            config = _config(name, pathlib.Path(folder, "given.toml"))
            _verb(env, "start", "-c", config)
            try:
                rows = _rows(*_kills(name, instance, KILLS_QUICK if quick else KILLS))
            finally:
                _verb(env, "stop", "-n", name)
        finally:
            simulator.send_signal(signal.SIGINT)
            simulator.communicate()
    return rows


def _config(name, given):
    """Without the budgets and the restart limit that would stretch the run."""
    document = tomllib.loads(given.read_text())
    text = f'[instance]\nname = "{name}"\nworkers = 2\n[restart]\ncrashes = 100\nwindow_s = 1\n'
    for venue, entry in document["venues"].items():
        text += f'[venues.{venue}]\nrest = "{entry["rest"]}"\nca_file = "{entry["ca_file"]}"\nrest_weight = {{ n = 1000000, per_s = 1 }}\n'
        text += "".join(f'urls."{endpoint}" = "{url}"\nlimits."{endpoint}".attempts = [{{ n = 100000, per_s = 1 }}]\n'
                        for endpoint, url in entry["urls"].items())
    for entry in document["subscribe"]:
        text += f'[[subscribe]]\nvenue = "{entry["venue"]}"\nsymbols = {json.dumps(entry["symbols"])}\nchannels = ["trade", "quote", "book"]\n'
    path = given.with_name("config.toml")
    path.write_text(text)
    return str(path)


def _verb(env, *words):
    done = subprocess.run([sys.executable, "-m", "feedhandler", *words], env=env, capture_output=True, text=True, timeout=60)
    if done.returncode != 0:
        raise Unavailable(f"feedhandler {words[0]} ended with {done.returncode}: {(done.stderr or done.stdout).strip()}")


def _kills(name, instance, count):
    """(events of the supervisor's log, [(kill ns, EPOCH ns, fresh ns)])."""
    import feedhandler
    rng, times = random.Random(3), []
    with feedhandler.attach(name) as feed:
        for _ in range(count):
            _drain(feed, rng.uniform(0.05, PAUSE_S))
            killed = time.time_ns()
            os.kill(instance.manifest_read(name)["workers"][0]["pid"], signal.SIGKILL)
            times.append((killed, *_fresh(feed)))
    with open(f"{instance.directory(name)}/supervisor.log") as lines:
        return [json.loads(line) for line in lines], times


def _drain(feed, seconds):
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        feed.poll(left)


def _fresh(feed):
    epoch_ns, end = 0, time.monotonic() + WAIT_S
    while time.monotonic() < end:
        batch = feed.poll(0.1)
        if batch.ring != 0 or len(batch) == 0:
            continue
        for kind, code, at in zip(batch.kind.tolist(), batch.code.tolist(), batch.ts_recv_ns.tolist()):
            if kind == STATUS and code == EPOCH:
                epoch_ns = at
            elif kind < STATUS and epoch_ns:
                return epoch_ns, at
    raise Unavailable(f"no fresh data within {WAIT_S:g} s of a kill")


def _rows(events, times):
    died = [event["ts_ns"] for event in events if event["event"] == "worker_died"]
    up = [event["ts_ns"] for event in events if event["event"] == "worker_up" and event["ts_ns"] > times[0][0]]
    if not len(died) == len(up) == len(times):
        raise Unavailable(f"{len(times)} kills, but {len(died)} deaths and {len(up)} successors in the log")
    note = f"{len(times)} kills at 2,000 messages a second over TLS, in-band and REST books"
    return [_row("worker killed: noticed", [(at - kill) / 1e6 for at, (kill, _, _) in zip(died, times)], 10, "detect ≤10 ms"),
            _row("worker noticed dead: successor ready", [(at - noticed) / 1e6 for at, noticed in zip(up, died)], 20, "≤20 ms after detection", REFERENCE_MS),
            _row("worker killed: EPOCH in its ring", [(epoch - kill) / 1e6 for kill, epoch, _ in times], None, ""),
            _row("worker noticed dead: fresh data", [(fresh - noticed) / 1e6 for noticed, (_, _, fresh) in zip(died, times)], 100, "≤100 ms + network", note=note)]


def _row(what, values, bound, target, reference=None, note=""):
    values = sorted(values)
    p50, p99 = values[len(values) // 2], values[min(len(values) - 1, int(len(values) * 0.99))]
    return Row(what, "ms", p50, reference, "a fresh interpreter" if reference else "", reference / p50 if reference else None,
               f"p99 {p99:.1f}, most {values[-1]:.1f}", target, p50 <= bound if bound else None, note)
