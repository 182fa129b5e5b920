"""demo: simulated venues, an instance and a live table, in one command, on a machine without internet."""
import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time

import click

from feedhandler.cli import common

VENUES = ("binance-spot", "binance-usdm", "binance-coinm", "okx", "kraken", "deribit")
ROWS_MAX = 24            # instruments shown: what fits a terminal
START_TIMEOUT_S = 60.0   # a cold start of six venues takes about two seconds here
STOP_TIMEOUT_S = 10.0


@click.command("demo")
@click.option("--seconds", type=click.FloatRange(min=1), help="End after this many seconds; else at Ctrl-C.")
@click.option("--venue", "venues", multiple=True, type=click.Choice(VENUES), help="Only this venue; repeatable.")
@click.option("--instruments", type=click.IntRange(1, 500), default=4, show_default=True, help="Instruments a venue.")
@click.option("--rate", type=click.IntRange(10, 50_000), default=2000, show_default=True, help="Messages a second in all.")
@click.option("--workers", type=click.IntRange(1, 16), default=1, show_default=True)
@common.json_option
def cmd_demo(seconds, venues, instruments, rate, workers, as_json):
    """Show the whole product at work: venues simulated on loopback, books moving, latency and gaps as they are.

    \b
    feedhandler demo
    feedhandler demo --seconds 10 --venue kraken --venue okx
    """
    name = f"demo-{os.getpid()}"
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="feedhandler-demo-")))
        stack.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, _interrupt))
        try:
            config = _simulate(stack, folder, venues or VENUES, instruments, rate, workers, name)
            _start(stack, name, config)
            summary = _watch(name, seconds, live=not as_json and sys.stdout.isatty(), quiet=as_json)
        except KeyboardInterrupt:
            common.fail("stopped before the demo was running")
    common.output(as_json, summary, _summary)
    sys.exit(common.OK if summary["gaps"] == summary["lost"] == 0 else common.DEGRADED)


def _interrupt(signum, frame):
    raise KeyboardInterrupt


def _command(*words):
    return [sys.executable, "-m", "feedhandler", *words]


def _simulate(stack, folder, venues, instruments, rate, workers, name):
    """Start the simulated venues in their own process; answers the configuration they wrote."""
    config = folder / "demo.toml"
    words = [word for venue in venues for word in ("--venue", venue)]
    log = stack.enter_context(open(folder / "simulate.log", "w+"))
    process = subprocess.Popen(
        _command("simulate", *words, "--instruments", str(instruments), "--rate", str(rate), "--workers", str(workers),
                 "--name", name, "--config-out", str(config)), stdout=log, stderr=log, start_new_session=True)
    stack.callback(_end, process)
    deadline = time.monotonic() + START_TIMEOUT_S
    while not config.exists():
        if process.poll() is not None or time.monotonic() > deadline:
            log.seek(0)
            common.fail(f"the simulated venues did not start: {log.read().strip()[-500:] or 'no output'}")
        time.sleep(0.05)
    return config


def _end(process):
    """Ctrl-C the simulated venues and wait; kill what does not end."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _start(stack, name, config):
    stack.callback(subprocess.run, _command("stop", "-n", name), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    done = subprocess.run(_command("start", "-n", name, "-c", str(config)), capture_output=True, text=True)
    if done.returncode not in (common.OK, common.DEGRADED):
        common.fail(f"the instance did not start: {(done.stderr or done.stdout).strip()[-800:]}")


class _Market:
    """What the table shows: last touch and counts by instrument, from the records of the rings."""

    def __init__(self, feed):
        self.feed = feed
        self.trades = {}
        self.records = self.frames_before = 0
        self.moves = {}

    def take(self, batch, numpy):
        self.records += len(batch)
        for name, kind in (("trades", 1), ("moves", 3)):
            ids, counts = numpy.unique(batch.instrument[batch.kind == kind], return_counts=True)
            seen = getattr(self, name)
            for id, count in zip(ids.tolist(), counts.tolist()):
                seen[id] = seen.get(id, 0) + count


def _watch(name, seconds, live, quiet):
    """Read the rings until the time is over or Ctrl-C; answers the summary."""
    import feedhandler
    import numpy
    begin = time.monotonic()
    with feedhandler.attach(name, reader_name="demo") as feed:
        market = _Market(feed)
        view = _live() if live else contextlib.nullcontext()
        try:
            with view as screen:
                shown, before = begin, 0
                while seconds is None or time.monotonic() - begin < seconds:
                    batch = feed.poll(timeout=0.1)
                    market.take(batch, numpy)
                    now = time.monotonic()
                    if now - shown >= 0.5:
                        if live:
                            screen.update(_table(name, market, feed, (market.records - before) / (now - shown)))
                        elif not quiet:
                            click.echo(f"{now - begin:5.1f} s  {market.records:,} records  lost {feed.lost}")
                        shown, before = now, market.records
        except KeyboardInterrupt:
            pass
        return _result(name, feed, market, time.monotonic() - begin)


def _live():
    from rich.live import Live
    return Live(refresh_per_second=4, screen=False)


def _counters(name):
    from feedhandler import instance
    from feedhandler.counters import Counters
    manifest = instance.manifest_read(name)
    return [Counters(instance.directory(name), worker["worker"]) for worker in manifest["workers"]]


def _table(name, market, feed, rate):
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text
    table = Table(title=f"feedhandler {name}: {rate:,.0f} records/s", title_justify="left", expand=False)
    for heading, side in (("venue", "left"), ("instrument", "left"), ("bid size", "right"), ("bid", "right"), ("ask", "right"),
                          ("ask size", "right"), ("last", "right"), ("trades", "right"), ("moves", "right"), ("book", "left")):
        table.add_column(heading, justify=side)
    busiest = sorted(feed.instruments, key=lambda row: (-market.moves.get(row.id, 0), row.id))[:ROWS_MAX]
    for row in sorted(busiest, key=lambda row: row.id):
        last = feed.quote(row)
        if last is None:
            continue
        table.add_row(row.venue, row.canonical, *(_number(value) for value in (
            last.bid_size, last.bid_price, last.ask_price, last.ask_size, last.trade_price)),
            f"{market.trades.get(row.id, 0):,}", f"{market.moves.get(row.id, 0):,}",
            Text(last.status or "-", style="green" if last.status == "LIVE" else "red"))
    gaps, lines = 0, []
    for counters in _counters(name):
        gaps += counters.values()["book_gaps"]
        stages = []
        for stage in ("decode", "publish"):
            figures = counters.latency(stage)
            stages.append(f"{stage} p50 {figures['p50_ns'] / 1000:.1f} p99 {figures['p99_ns'] / 1000:.1f} µs")
        lines.append(f"worker {counters.worker}: " + " · ".join(stages))
    lines.append(f"gaps {gaps} · lost {feed.lost} · Ctrl-C ends")
    return Group(table, Text("\n".join(lines)))


def _number(value):
    return "-" if value is None else f"{value:f}"


def _result(name, feed, market, elapsed):
    counters = _counters(name)
    total = {}
    for worker in counters:
        for key, value in worker.values().items():
            total[key] = total.get(key, 0) + value
    status = [last.status for last in (feed.quote(row) for row in feed.instruments) if last is not None]
    return {"name": name, "seconds": round(elapsed, 3), "records": market.records, "frames": total["frames"],
            "trades": sum(market.trades.values()), "book_moves": sum(market.moves.values()),
            "books_live": status.count("LIVE"), "gaps": total["book_gaps"], "lost": feed.lost,
            "malformed": total["frames_malformed"], "unknown": total["frames_unknown"],
            "latency": {stage: [worker.latency(stage) for worker in counters] for stage in ("decode", "publish")}}


def _summary(summary):
    click.echo(f"{summary['seconds']:.1f} s: {summary['frames']:,} frames, {summary['records']:,} records, {summary['trades']:,} trades, "
               f"{summary['book_moves']:,} touch moves, {summary['books_live']} books live")
    for stage, workers in summary["latency"].items():
        for index, figures in enumerate(workers):
            click.echo(f"worker {index} {stage}: p50 {figures['p50_ns'] / 1000:.1f} µs, p99 {figures['p99_ns'] / 1000:.1f} µs, "
                       f"max {figures['max_ns'] / 1000:,.0f} µs")
    click.echo(f"gaps {summary['gaps']}, lost {summary['lost']}")
