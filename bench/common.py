"""What every benchmark shares: rows of a table, paired medians, the machine."""
import contextlib
import dataclasses
import os
import pathlib
import platform
import shutil
import statistics
import tempfile
import time

REPEATS = 7  # a ratio is the median of at least seven pairs taken in turn


@dataclasses.dataclass
class Row:
    """One line of the table. ours and reference are in `unit`; ratio is what the target speaks of."""
    what: str
    unit: str
    ours: float
    reference: float | None = None
    reference_name: str = ""
    ratio: float | None = None
    spread: str = ""      # lowest to highest of the pairs' ratios, or of ours
    target: str = ""      # as DESIGN words it; "" for information only
    met: bool | None = None
    note: str = ""


class Unavailable(Exception):
    """This benchmark cannot run here; the text says what is missing and how to get it."""


def pairs(ours, reference, repeats=REPEATS):
    """Run ours() and reference() in turn; each answers one figure. Returns (median ours, median reference, ratios)."""
    first, second = [], []
    for _ in range(repeats):
        first.append(ours())
        second.append(reference())
    return statistics.median(first), statistics.median(second), [b / a for a, b in zip(first, second)]


def spread(values):
    return f"{min(values):.3g}–{max(values):.3g}"


def ns_each(function, count, seconds=0.05):
    """Median ns of one of the `count` operations that a call of function() makes, over calls filling `seconds`."""
    samples = []
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline or len(samples) < 3:
        begin = time.perf_counter_ns()
        function()
        samples.append((time.perf_counter_ns() - begin) / count)
    return statistics.median(samples)


def two_cpus():
    """Two CPUs this process may use; Unavailable when there is one."""
    cpus = sorted(os.sched_getaffinity(0))
    if len(cpus) < 2:
        raise Unavailable("needs two CPUs, this process may use one")
    return cpus[0], cpus[1]


def may_fifo():
    """Whether SCHED_FIFO is permitted."""
    pid = os.fork()
    if pid == 0:
        try:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        except OSError:
            os._exit(1)
        os._exit(0)
    return os.waitpid(pid, 0)[1] == 0


@contextlib.contextmanager
def shared_directory():
    """A directory in shared memory, gone afterwards."""
    directory = pathlib.Path(tempfile.mkdtemp(prefix="feedhandler-bench-", dir="/dev/shm"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


def machine():
    """One line: processor, cores, kernel, Python, load."""
    model = "unknown processor"
    with open("/proc/cpuinfo") as lines:
        for line in lines:
            if line.startswith("model name"):
                model = line.split(":", 1)[1].strip()
                break
    return f"{model}, {os.cpu_count()} CPUs, Linux {platform.release()}, Python {platform.python_version()}, load average {os.getloadavg()[0]:.1f}"


def table(rows):
    """Markdown of the rows."""
    lines = ["| what | ours | reference | ratio | spread | target | met |", "|---|---|---|---|---|---|---|"]
    for row in rows:
        reference = "" if row.reference is None else f"{row.reference:,.4g} {row.unit} ({row.reference_name})"
        ratio = "" if row.ratio is None else f"{row.ratio:.2f}×"
        met = {True: "yes", False: "**no**", None: ""}[row.met]
        lines.append(f"| {row.what} | {row.ours:,.4g} {row.unit} | {reference} | {ratio} | {row.spread} | {row.target} | {met} |")
        if row.note:
            lines.append(f"| | {row.note} | | | | | |")
    return "\n".join(lines)
