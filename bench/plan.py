"""Plan: time from nothing to a placement, and from that to one with a worker drained; its peak worker against the lower
bound; beside a solver where one is installed.

Rates are lognormal over instruments (the heaviest bring a hundred times the median), three channels each, as the recordings
show them. Every plan is checked: no limit is broken, and planning the planned placement again moves nothing.
"""
import dataclasses
import random
import statistics
import time

from bench import common
from feedhandler.capacity import load, plan
from feedhandler.capacity.profile import Profile

CASES = ((100, 2, 300), (1000, 8, 300), (10_000, 64, 300), (50_000, 64, 1500))   # streams, workers, connections at most
FILL = 40
CHANNELS = (("quote", 4.0), ("trade", 1.0), ("book", 2.0))
SOLVER_CASE = (200, 4, 60)   # streams, connections, cap: what a solver can still prove optimal
SOLVER_S = 10.0


def run(quick=False):
    rows = []
    for count, workers, connections in CASES[:3] if quick else CASES:
        rows += _case(count, workers, connections, 3 if quick else common.REPEATS)
    return rows + _solver()


def _case(count, workers, connections, repeats):
    streams, loads, profiles, settings = universe(count, workers, connections)
    found, times, cpu_ms = _timed(repeats, lambda: plan.plan(streams, profiles, loads, plan.EMPTY, settings))
    again, again_times, _ = _timed(repeats, lambda: plan.plan(streams, profiles, loads, found.placement, settings))
    drained = dataclasses.replace(settings, drained=(0,))
    after, after_times, after_cpu_ms = _timed(repeats, lambda: plan.plan(streams, profiles, loads, found.placement, drained))
    problems = plan.over(found.placement, profiles, settings) + plan.over(after.placement, profiles, drained)
    if problems or again.moves:
        raise AssertionError(f"{count} streams: {problems[:3]}, {len(again.moves)} moves after the plan")
    ratio, target = _peak(found.placement, loads, workers), count == 10_000
    what = f"plan {count:,} streams, {workers} workers"
    ours = statistics.median(times)
    return [common.Row(what, "ms", ours, spread=common.spread(times), target="≤100 ms" if target else "", met=ours <= 100 if target else None,
                       note=f"{len(found.placement.connections)} connections; {cpu_ms:.1f} ms of CPU; again, moving nothing: "
                            f"{statistics.median(again_times):.1f} ms ({common.spread(again_times)})"),
            common.Row(f"{what}: one drained", "ms", statistics.median(after_times), spread=common.spread(after_times),
                       note=f"{len(after.moves):,} moves; {after_cpu_ms:.1f} ms of CPU"),
            common.Row(f"{what}: peak worker", "of the bound", ratio, target="≤1.02" if target else "", met=ratio <= 1.02 if target else None)]


def _timed(repeats, make):
    """(what it made last, times in ms, median CPU time in ms)."""
    times, cpu = [], []
    for _ in range(repeats):
        begin, cpu_begin = time.perf_counter(), time.thread_time()
        found = make()
        times.append((time.perf_counter() - begin) * 1e3)
        cpu.append((time.thread_time() - cpu_begin) * 1e3)
    return found, times, statistics.median(cpu)


def universe(count, workers, connections):
    """(streams, loads, profiles, settings) of a made-up venue."""
    rnd, loads, streams = random.Random(count), load.Loads(), []
    for instrument in range(-(-count // len(CHANNELS))):
        base = rnd.lognormvariate(1.5, 1.2)
        for channel, factor in CHANNELS[:count - len(streams)]:
            wire = f"symbol{instrument}@{channel}"
            streams.append(plan.Wanted("venue", "stream", wire, instrument, f"SYMBOL{instrument}", 0, channel, "perpetual"))
            loads.measure(("venue", "stream", wire), 0.0, 60.0, round(60 * base * factor) + 1, cpu_ns=3000)
    profile = Profile.read({"venue": "venue", "endpoint": "stream", "conn": {"max_open": connections * 5 // 4},
                            "sub": {"max_per_conn": 1024, "soft_per_conn": FILL}})
    return streams, loads, {("venue", "stream"): profile}, plan.Settings(workers=workers, streams_per_worker=4000)


def _peak(placement, loads, workers):
    """Heaviest worker by the lower bound of any placement of whole instruments."""
    instruments, held = {}, {}
    for connection in placement.connections:
        for stream in connection.streams:
            of = loads.of(stream)
            cpu = int(of.messages_per_s * of.cpu_ns) + 1
            instruments[stream.instrument] = instruments.get(stream.instrument, 0) + cpu
            held[connection.worker] = held.get(connection.worker, 0) + cpu
    return max(held.values()) / plan.lower_bound(list(instruments.values()), workers)


def _solver():
    """A mixed-integer solver on a small case: its time, and that its peak is no lower than ours by much."""
    try:
        import numpy
        from scipy import optimize
    except ImportError:
        return []
    count, bins, cap = SOLVER_CASE
    weights = [round(1e6 / (rank + 1)) for rank in range(count)]
    loads, streams = load.Loads(), []
    for rank, weight in enumerate(weights):
        streams.append(plan.Wanted("venue", "stream", f"s{rank}", rank, f"S{rank}"))
        loads.measure(("venue", "stream", f"s{rank}"), 0.0, 1.0, weight / 1e3, cpu_ns=1000)
    profiles = {("venue", "stream"): Profile.read({"venue": "venue", "endpoint": "stream", "conn": {}, "sub": {}})}
    settings = plan.Settings(workers=bins, streams_per_worker=cap)
    begin = time.perf_counter()
    found = plan.plan(streams, profiles, loads, plan.EMPTY, settings)
    ours_ms = (time.perf_counter() - begin) * 1e3
    size = count * bins
    constraints = [
        optimize.LinearConstraint(numpy.hstack([numpy.kron(numpy.eye(count), numpy.ones(bins)), numpy.zeros((count, 1))]), 1, 1),
        optimize.LinearConstraint(numpy.hstack([numpy.kron(numpy.ones(count), numpy.eye(bins)), numpy.zeros((bins, 1))]), 0, cap),
        optimize.LinearConstraint(numpy.hstack([numpy.kron(numpy.array(weights, float), numpy.eye(bins)), -numpy.ones((bins, 1))]), -numpy.inf, 0)]
    begin = time.perf_counter()
    answer = optimize.milp([0.0] * size + [1.0], constraints=constraints, integrality=[1] * size + [0],
                           bounds=optimize.Bounds(0, [1.0] * size + [numpy.inf]), options={"time_limit": SOLVER_S, "mip_rel_gap": 1e-4})
    solver_ms = (time.perf_counter() - begin) * 1e3
    if answer.x is None:
        return [common.Row("plan 200 Zipf streams, 4 workers, 60 each", "ms", ours_ms, note=f"the solver found nothing in {SOLVER_S:g} s")]
    held = [0] * bins
    for instrument, worker in found.placement.workers.items():
        held[worker] += weights[instrument]
    return [common.Row(f"plan {count} Zipf streams, {bins} workers, {cap} each", "ms", ours_ms, solver_ms, "scipy.milp", solver_ms / ours_ms,
                       note=f"our peak is {max(held) / answer.x[-1]:.4f} of the solver's")]
