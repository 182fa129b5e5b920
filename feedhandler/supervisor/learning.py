"""What the streams of this instance cost, learned while they run and kept over restarts.

Every MEASURE_S, at first oftener, the supervisor asks each worker for all its states. The messages since the last answer
are a stream's rate, its records and bursts are told with them; bytes come from the counters of its connection, shared out by
messages; the CPU of a message is the worker's CPU time by its messages, where there were enough to tell and the worker does
not spin. Two lines of a stream are counted as one, and share what came. What a throttled connection brings is no measure.
Who writes $XDG_STATE_HOME/feedhandler/loads-<name>.json: this instance's supervisor, by rename. Lost, it is learned anew.
"""
import json
import os
import time

from feedhandler.capacity.load import Loads, prior
from feedhandler.supervisor.ledger import default_path

MEASURE_S = 30.0   # to answer costs a worker some microseconds a stream, in which it receives nothing
MEASURE_FIRST_S, FIRST_ROUNDS = 1.0, 10   # until rates are known well enough
SAVE_S = 60.0
CPU_MESSAGES_PER_S = 1000   # with fewer, timers and reports of an idle worker weigh more than its messages
FILE_SIZE_MAX = 64 << 20    # 100,000 streams take about 20 MB
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def path_of(name):
    return os.path.join(os.path.dirname(default_path()), f"loads-{name}.json")


def read(path):
    """(Loads, "" or why they begin empty)."""
    try:
        with open(path) as file:
            return Loads.load(json.loads(file.read(FILE_SIZE_MAX))), ""
    except FileNotFoundError:
        return Loads(), ""
    except (OSError, ValueError, AttributeError) as error:
        return Loads(), f"{path}: {error}; loads are learned anew"


def write(path, loads):
    """OSError where it cannot be written."""
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    fresh = f"{path}.{os.getpid()}"
    with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600), "w") as file:
        file.write(json.dumps(loads.dump(), separators=(",", ":")))
    os.replace(fresh, path)


def cpu_s(pid):
    """CPU time a process has used, or None when it is gone."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            fields = file.read().rsplit(")", 1)[1].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


class Learner:
    """Turns answers of workers into measurements. spin: their CPU says nothing."""

    def __init__(self, loads, spin):
        self.loads, self.spin = loads, spin
        self.last = {}      # worker number → (pid, monotonic s, CPU s, {stream id: StreamState}, {connection id: (frames, bytes)})

    def heard(self, worker, pid, states, sessions, streams, home_of, throttled=(), now_s=None):
        """All states of a worker: control.StreamState rows, counters' session rows, and the plan's streams by id; throttled: ids
        of connections whose venue holds back what they would bring."""
        now_s = time.monotonic() if now_s is None else now_s
        told = {state.id: state for state in states if state.id in home_of}
        carried = {row["connection"]: (row["frames"], row["bytes"]) for row in sessions}
        spent = None if self.spin else cpu_s(pid)
        before = self.last.get(worker)
        self.last[worker] = pid, now_s, spent, told, carried
        if before is None or before[0] != pid or now_s - before[1] < MEASURE_FIRST_S / 2:
            return
        seconds = now_s - before[1]
        lines = {}          # key → [(id, messages, records or None) of each of its lines]
        for id, state in told.items():
            fresh = _fresh(before[3].get(id), state)
            if fresh is not None:
                lines.setdefault((home_of[id][0], streams[id].endpoint, streams[id].wire), []).append((id, *fresh))
        total, cpu_ns = sum(found[0][1] for found in lines.values()), None
        if spent is not None and before[2] is not None and total >= CPU_MESSAGES_PER_S * seconds:
            cpu_ns = (spent - before[2]) * 1e9 / total
        for key, found in lines.items():
            id, count, records = found[0]
            connection = home_of[id][2]
            if connection in throttled:
                continue
            count /= len(found)
            self.loads.measure(key, time.time(), seconds, count, _share(before[4].get(connection), carried.get(connection), count), records, cpu_ns,
                               told[id].bursts, like=prior(streams[id].channel))


def _fresh(before, state):
    """(messages, records or None) since an answer before, or None where they began anew. No record of messages: none was counted."""
    if before is None or state.messages < before.messages:
        return None
    records = state.records - before.records
    return state.messages - before.messages, records if records > 0 else None


def _share(before, after, messages):
    """Bytes of so many messages of a connection, or None where its counters do not say."""
    if before is None or after is None or after[0] <= before[0] or after[1] < before[1]:
        return None
    return (after[1] - before[1]) * messages / (after[0] - before[0])
