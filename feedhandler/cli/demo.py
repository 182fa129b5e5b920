"""demo: simulated venues, an instance and a live table, in one command, on a machine without internet."""
import collections
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
ROWS_MAX = 40            # instruments shown, where the terminal is as high
AROUND_TABLE = 7         # lines of the terminal that are not instruments: title, heading, blank, latency, counts, cursor
SHOW_PERIOD_S = 0.5
START_TIMEOUT_S = 60.0   # a cold start of six venues takes about two seconds here
STOP_TIMEOUT_S = 10.0
TRADE, TOUCH = 1, 3      # kinds of records
STAGES = {"decode": "decoded", "publish": "visible in the ring"}
HEADINGS = ("venue", "instrument", "bid size", "bid", "ask", "ask size", "last", "trades", "moves", "book")
LEFT = ("venue", "instrument", "book")
DROPPED_FIRST = ("moves", "trades", "ask size", "bid size", "last", "venue")   # on a narrow terminal
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)   # each ends the demo and leaves nothing behind


@click.command("demo")
@click.option("--seconds", type=click.FloatRange(min=1), help="End after this many seconds; else at Ctrl-C.")
@click.option("--venue", "venues", multiple=True, type=click.Choice(VENUES), help="Only this venue; repeatable.")
@click.option("--instruments", type=click.IntRange(1, 500), default=4, show_default=True, help="Instruments a venue.")
@click.option("--rate", type=click.IntRange(10, 50_000), default=2000, show_default=True, help="Messages a second in all.")
@click.option("--workers", type=click.IntRange(1, 16), default=1, show_default=True)
@common.json_option
def cmd_demo(seconds, venues, instruments, rate, workers, as_json):
    """Show the whole product at work: venues simulated on loopback, books moving, latency and gaps as they are.

    Exit code 0, or 4 if data was lost.

    \b
    feedhandler demo
    feedhandler demo --seconds 10 --venue kraken --venue okx
    """
    name, venues = f"demo-{os.getpid()}", tuple(dict.fromkeys(venues)) or VENUES
    say = (lambda text: None) if as_json else click.echo
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="feedhandler-demo-")))
        for one in SIGNALS:
            signal.signal(one, _interrupt)
        try:
            say(f"simulating {', '.join(venues)}:\n{instruments} instruments each, {rate:,} messages a second in all")
            config = _simulate(stack, folder, venues, instruments, rate, workers, name)
            _start(stack, name, config)
            say(f"{name} runs; in another terminal try feedhandler stats -n {name}\n")
            summary = _watch(name, seconds, live=not as_json and sys.stdout.isatty(), quiet=as_json)
        except KeyboardInterrupt:
            common.fail("stopped before the demo was running; run feedhandler demo again")
        finally:
            _ignore_signals()
    common.output(as_json, summary, _summary)
    sys.exit(common.OK if summary["gaps"] == summary["lost"] == 0 else common.DEGRADED)


def _interrupt(signum, frame):
    _ignore_signals()
    raise KeyboardInterrupt


def _ignore_signals():
    """Nothing may interrupt the tidying, with which this process ends."""
    for one in SIGNALS:
        signal.signal(one, signal.SIG_IGN)


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
    """Start the instance; it is stopped at the end, whatever happens."""
    stack.callback(_stop, name)
    process = subprocess.Popen(_command("start", "-n", name, "-c", str(config)), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                               text=True, start_new_session=True)
    try:
        said, _ = process.communicate()
    except KeyboardInterrupt:
        process.communicate()               # a start that is half done could not be stopped
        raise
    if process.returncode not in (common.OK, common.DEGRADED):
        said = said.strip().removeprefix("feedhandler: ")[-800:]
        common.fail(f"the instance did not start: {said}\ntry more --workers, fewer --instruments or a lower --rate")


def _stop(name):
    done = subprocess.run(_command("stop", "-n", name), capture_output=True, text=True)
    if done.returncode not in (common.OK, common.NOT_RUNNING):
        click.echo(f"the instance did not stop: {done.stderr.strip()[-500:]}; run feedhandler stop -n {name}", err=True)


class _Market:
    """Counts by instrument, from the records of the rings."""

    def __init__(self, feed):
        self.feed = feed
        self.begin = time.monotonic()
        self.records = 0
        self.trades, self.moves = collections.Counter(), collections.Counter()

    def take(self, batch, numpy):
        self.records += len(batch)
        for seen, kind in ((self.trades, TRADE), (self.moves, TOUCH)):
            ids, counts = numpy.unique(batch.instrument[batch.kind == kind], return_counts=True)
            seen.update(dict(zip(ids.tolist(), counts.tolist())))

    def elapsed(self):
        return time.monotonic() - self.begin


def _watch(name, seconds, live, quiet):
    """Read the rings until the time is over or Ctrl-C; answers the summary."""
    import feedhandler
    with feedhandler.attach(name, reader_name="demo") as feed, contextlib.ExitStack() as stack:
        market, counters = _Market(feed), _counters(name)
        show = _screen(stack, name, market, counters) if live else None if quiet else _line(market, counters)
        over = []                           # an exception in the middle of drawing would leave half a table, and a lock (as an
        for one in SIGNALS:                 # Event has) would wait for itself when signals come one in the other
            signal.signal(one, lambda signum, frame: over.append(signum))
        _read(feed, market, seconds, show, over)
        if live:
            show(over=True)
        return _result(name, market, counters)


def _read(feed, market, seconds, show, over):
    import numpy
    shown = 0.0
    while not over and (seconds is None or market.elapsed() < seconds):
        market.take(feed.poll(timeout=0.1), numpy)
        if show and market.elapsed() - shown >= SHOW_PERIOD_S:
            shown = market.elapsed()
            show()


def _line(market, counters):
    """What shows the state of things as a line, where there is no terminal."""
    def show():
        click.echo(f"{market.elapsed():5.1f} s  {market.records:,} records  gaps {_total(counters)['book_gaps']}  lost {market.feed.lost}")
    return show


def _screen(stack, name, market, counters):
    """What shows the state of things as a table that stands still on a terminal."""
    from rich.console import Console
    from rich.live import Live
    console = Console(highlight=False)
    screen = stack.enter_context(Live(console=console, auto_refresh=False))
    before = [0.0, 0]

    def show(over=False):
        now = market.elapsed()
        title = f"{name}  {now:.1f} s  {(market.records - before[1]) / (now - before[0]):,.0f} records/s"
        if over:
            title = f"{name}  {now:.1f} s  {market.records / now:,.0f} records/s"
        before[:] = now, market.records
        foot = [*(_latency_text(worker) for worker in counters),
                f"gaps {_total(counters)['book_gaps']}  lost {market.feed.lost}" + ("" if over else "  Ctrl-C ends")]
        screen.update(_table(title, foot, market, console), refresh=True)
    return show


def _counters(name):
    from feedhandler import instance
    from feedhandler.counters import Counters
    manifest = instance.manifest_read(name)
    return [Counters(instance.directory(name), worker["worker"]) for worker in manifest["workers"]]


def _total(counters):
    total = collections.Counter()
    for worker in counters:
        total.update(worker.values())
    return total


def _latency_text(worker):
    """"worker 0: decode p50 1.4 µs, p99 7.8 µs; publish …": from the socket read to decoded, and to visible in the ring."""
    stages = ((stage, worker.latency(stage)) for stage in STAGES)
    return f"worker {worker.worker}: " + "; ".join(
        f"{stage} p50 {figures['p50_ns'] / 1000:.1f} µs, p99 {figures['p99_ns'] / 1000:.1f} µs" for stage, figures in stages)


def _table(title, foot, market, console):
    """As many instruments and columns as the terminal has room for."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text
    lines = max(1, console.height - AROUND_TABLE - len(foot))
    instruments = _shown(market.feed.instruments, min(ROWS_MAX, lines))
    rows = [_cells(row, market) for row in instruments]
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    kept = _fitting(rows, console.width)
    for index in kept:
        table.add_column(HEADINGS[index], justify="left" if HEADINGS[index] in LEFT else "right", no_wrap=True)
    for cells in rows:
        style = {len(HEADINGS) - 1: "green" if cells[-1] == "LIVE" else "red"}
        table.add_row(*(Text(cells[index], style=style.get(index, "")) for index in kept))
    hidden = len(market.feed.instruments) - len(instruments)
    if hidden:
        foot = [f"and {hidden} more instruments", *foot]
    return Group(table, Text("\n" + "\n".join(foot)))


def _shown(instruments, count):
    """count instruments, of all venues in turn, in the order of the instrument table: the same ones every time."""
    seen, ranks = collections.Counter(), []
    for row in instruments:
        ranks.append((seen[row.venue], row.id))
        seen[row.venue] += 1
    ids = {id for _, id in sorted(ranks)[:count]}
    return [row for row in instruments if row.id in ids]


def _cells(row, market):
    last = market.feed.quote(row)
    if last is None:
        return [row.venue, row.canonical, *["-"] * (len(HEADINGS) - 2)]
    return [common.printable(row.venue), common.printable(row.canonical),
            _number(last.bid_size, row.lot), _number(last.bid_price, row.tick), _number(last.ask_price, row.tick),
            _number(last.ask_size, row.lot), _number(last.trade_price, row.tick),
            f"{market.trades[row.id]:,}", f"{market.moves[row.id]:,}", last.status or "-"]


def _number(value, step):
    """value with the digits of its instrument's tick or lot, or more where it has more; never rounded."""
    if value is None:
        return "-"
    return f"{value:.{max(_digits(value), _digits(step))}f}"


def _digits(value):
    return 0 if value is None else max(0, -value.normalize().as_tuple().exponent)


def _fitting(rows, width):
    """Indices of the columns that fit; those in DROPPED_FIRST go first."""
    needs = [2 + max(len(heading), *(len(cells[index]) for cells in rows)) for index, heading in enumerate(HEADINGS)]
    kept = list(range(len(HEADINGS)))
    for heading in DROPPED_FIRST:
        if sum(needs[index] for index in kept) > width:
            kept.remove(HEADINGS.index(heading))
    return kept


def _result(name, market, counters):
    total, feed = _total(counters), market.feed
    status = [last.status for last in (feed.quote(row) for row in feed.instruments) if last is not None]
    return {"name": name, "seconds": round(market.elapsed(), 3), "records": market.records, "frames": total["frames"],
            "trades": market.trades.total(), "book_moves": market.moves.total(), "instruments": len(feed.instruments),
            "books_live": status.count("LIVE"), "gaps": total["book_gaps"], "lost": feed.lost,
            "malformed": total["frames_malformed"], "unknown": total["frames_unknown"],
            "latency": {stage: [worker.latency(stage) for worker in counters] for stage in STAGES}}


def _summary(summary):
    click.echo(f"\n{summary['seconds']:.1f} s: {summary['records']:,} records read, {summary['trades']:,} of them trades, "
               f"{summary['book_moves']:,} touches; {summary['books_live']} of {summary['instruments']} books live")
    click.echo(f"gaps {summary['gaps']}, lost {summary['lost']}, malformed frames {summary['malformed']}, unknown {summary['unknown']}\n")
    rows = [[f"worker {index}", STAGES[stage], *(f"{figures[key] / 1000:,.1f}" for key in ("p50_ns", "p99_ns", "max_ns"))]
            for stage, workers in summary["latency"].items() for index, figures in enumerate(workers)]
    headings = ["latency", "from the socket read to", "p50 µs", "p99", "max"]
    click.echo(common.columns(sorted(rows), headings, right=headings[2:]))
