"""Ring: what a record costs the writer, and how long it takes to another CPU, beside two usual layouts and a bare cache line.

Every latency run stands between two ping-pongs over one cache line (bench/ring.c) and is divided by their mean: this takes
out where the machine has put its CPUs. Runs whose two ping-pongs differ by more than a quarter are dropped. The class is
near below 100 ns of ping-pong, else far. Short bursts under SCHED_FIFO where permitted.
"""
import json
import statistics
import subprocess

from bench import build, common

NEAR_NS_MAX = 100
DRIFT_MAX = 1.25
LATENCY_KINDS = ("ours-tip", "ours-head", "agrona", "spsc")
TARGET = {"near": 2.2, "far": 2.5}
WRITE_NS_MAX, ATTACHED_MAX = 3.5, 1.05


def run(quick=False):
    cpus = common.two_cpus()
    with common.shared_directory() as directory:
        program = Program(build.program("ring"), directory, cpus)
        repeats = 1 if quick else common.REPEATS
        return _latency_rows(program, repeats) + _lossless_rows(program, 1 if quick else 3) + _write_rows(program, repeats)


class Program:
    """bench/ring.c, one run a call."""

    def __init__(self, path, directory, cpus):
        self.path, self.directory, self.cpus = path, directory, cpus
        self.fifo = int(common.may_fifo())

    def __call__(self, *what):
        command = [self.path, str(self.directory), str(self.cpus[0]), str(self.cpus[1]), str(self.fifo), *map(str, what)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30)
        (self.directory / "worker-0.ring").unlink(missing_ok=True)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.returncode}")
        return json.loads(done.stdout)


def _latency_rows(program, repeats):
    """One row a kind and class seen: p50, its ratio to the ping-pongs around it, p99 in the note."""
    runs = []       # (kind, class, p50, p99, ratio)
    dropped = 0
    before = program("pingpong")["p50"]
    for _ in range(repeats):
        for kind in LATENCY_KINDS:
            seen = program("latency", kind)
            after = program("pingpong")["p50"]
            if max(before, after) > DRIFT_MAX * min(before, after):
                dropped += 1
            else:
                around = (before + after) / 2
                runs.append((kind, "near" if around < NEAR_NS_MAX else "far", seen["p50"], seen["p99"], seen["p50"] / around, around))
            before = after
    rows = []
    for place in ("near", "far"):
        for kind in LATENCY_KINDS:
            of = [run for run in runs if run[:2] == (kind, place)]
            if of:
                rows.append(_latency_row(kind, place, of, dropped))
    return rows


def _latency_row(kind, place, runs, dropped):
    p50, p99, ratio, around = (statistics.median(run[i] for run in runs) for i in (2, 3, 4, 5))
    ours = kind == "ours-tip"
    return common.Row(f"ring one-way p50, {kind}, {place}", "ns", p50, around, "1-line ping-pong", ratio,
                      common.spread([run[4] for run in runs]), f"≤{TARGET[place]}×" if ours else "",
                      ratio <= TARGET[place] if ours else None,
                      f"p99 {p99:,.0f} ns; {len(runs)} runs, {dropped} of all dropped for drift")


def _lossless_rows(program, repeats):
    rows = []
    figures = {kind: [] for kind in ("ours", "agrona", "spsc")}
    for _ in range(repeats):
        for kind, found in figures.items():
            found.append(program("lossless", kind)["per_s"] / 1e6)
    ours = statistics.median(figures["ours"])
    for kind in ("agrona", "spsc"):
        ratios = [a / b for a, b in zip(figures["ours"], figures[kind])]
        rows.append(common.Row("ring lossless to one reader", "M/s", ours, statistics.median(figures[kind]), kind,
                               statistics.median(ratios), common.spread(ratios)))
    return rows


def _write_rows(program, repeats):
    def free(kind, readers=0):
        return lambda: program("free", kind, readers)["ns"]
    ours, agrona, ratios = common.pairs(free("ours"), free("agrona"), repeats)
    alone, attached, slower = common.pairs(free("ours"), free("ours", 64), repeats)
    copied = statistics.median(free("ours-copied")() for _ in range(max(1, repeats // 2)))
    slowdown = statistics.median(slower)
    return [common.Row("ring write in place, nobody attached", "ns", ours, agrona, "Agrona layout", statistics.median(ratios),
                       common.spread(ratios), f"≤{WRITE_NS_MAX} ns", ours <= WRITE_NS_MAX,
                       f"a 4 MiB ring; fh_ring_put(), which copies a finished record: {copied:.1f} ns"),
            common.Row("ring write in place, 64 attached readers asleep", "ns", attached, alone, "nobody attached", slowdown,
                       common.spread(slower), f"≤{ATTACHED_MAX}×", slowdown <= ATTACHED_MAX)]
