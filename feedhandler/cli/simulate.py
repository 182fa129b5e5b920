"""feedhandler simulate: simulated venues on loopback, until Ctrl-C or until what was asked for is done."""
import json
import pathlib
import sys

import click

PROGRESS_S = 1.0
HEAVY_MAX = 1000


@click.command("simulate")
@click.option("--venue", "venues", multiple=True, help="Venue to simulate; may be repeated. Default: binance-spot.")
@click.option("--instruments", default=10, show_default=True, type=click.IntRange(1, 5000), help="Instruments a venue.")
@click.option("--rate", default=1000.0, show_default=True, type=click.FloatRange(min=0.1), help="Data messages a second over all venues.")
@click.option("--rate-each", default=0.0, type=click.FloatRange(min=0), metavar="MSG_PER_S",
              help="Data messages a second of every subscribed stream, instead of --rate: who subscribes to more gets more.")
@click.option("--seed", default=1, show_default=True, help="The same seed gives the same market.")
@click.option("--levels", default=40, show_default=True, type=click.IntRange(12, 1000), help="Levels a side at the start.")
@click.option("--capture", type=click.Path(exists=True, dir_okay=False), help="Play this recording on the one --venue named.")
@click.option("--speed", default="1", show_default=True, help="Factor on a recording's pace, or max: as fast as the sockets take it.")
@click.option("--wait-subscriptions", default="all", show_default=True, help="Streams to wait for before a recording starts: a number or all.")
@click.option("--exit-when-done", is_flag=True, help="End when the recording has been played.")
@click.option("--close", "close_at_end", is_flag=True, help="Close the connections when the recording has been played.")
@click.option("--seconds", type=click.FloatRange(min=0), help="End after so many seconds.")
@click.option("--port", default=0, type=click.IntRange(0, 65535), help="WebSocket port; 0 takes a free one.")
@click.option("--rest-port", default=0, type=click.IntRange(0, 65535), help="REST port; 0 takes a free one.")
@click.option("--plain", is_flag=True, help="No TLS.")
@click.option("--no-limits", is_flag=True, help="Count the venues' limits without punishing.")
@click.option("--lifetime", default=86_400.0, show_default=True, help="Seconds until a connection is cut.")
@click.option("--time-scale", default=1.0, show_default=True, help="Factor on bans, idle times and deadlines.")
@click.option("--snapshot-pause", default=0.0, show_default=True, help="Seconds an instrument stands still after a REST book was served.")
@click.option("--throttle-above", default=0.0, type=click.FloatRange(min=0), metavar="MSG_PER_S",
              help="Messages a second a connection is sent; what is above is queued and comes late. 0: no such limit.")
@click.option("--throttle-drop", default=0.0, type=click.FloatRange(min=0), metavar="SECONDS", help="Close a connection that is throttled so late. 0: never.")
@click.option("--heavy", "heavies", multiple=True, metavar="SYMBOL=FACTOR", help="An instrument with so many times the events of another one; may be repeated.")
@click.option("--fault", "faults", multiple=True, metavar="KIND[,FIELD=VALUE]…", help="Inject a fault; as drop,symbol=BTCUSDT,channel=book,skip=100.")
@click.option("--directory", default="", help="Where ca.pem is written; default: a temporary directory.")
@click.option("--config-out", type=click.Path(dir_okay=False), help="Write a feedhandler configuration that reads from here.")
@click.option("--name", default="simulated", show_default=True, help="Instance name in that configuration.")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1, 64), help="Workers in that configuration.")
@click.option("--oracle-out", type=click.Path(dir_okay=False), help="On exit, write what a correct receiver must have.")
@click.option("--json", "as_json", is_flag=True, help="Print endpoints at the start and the report at the end as JSON lines.")
def cmd_simulate(venues, capture, speed, faults, config_out, oracle_out, seconds, exit_when_done, as_json, plain, no_limits, name, workers,
                 heavies, **options):
    """Run simulated venues on loopback, with their protocols, limits and punishments.

    \b
    feedhandler simulate --venue okx --venue kraken --config-out simulated.toml
    feedhandler simulate --venue deribit --capture deribit_2021.tsv.gz --speed max --exit-when-done
    """
    import uvloop
    from feedhandler.simulate.faults import FaultError
    from feedhandler.simulate.player import CaptureError
    from feedhandler.simulate.server import Simulator, SimulatorConfig
    venues = venues or ("binance-spot",)
    if capture and len(venues) != 1:
        raise click.UsageError("--capture plays on one venue: give exactly one --venue")
    if speed != "max":
        speed = positive(speed, "--speed")
    if options["wait_subscriptions"] != "all":
        positive(options["wait_subscriptions"], "--wait-subscriptions")
    options["snapshot_pause_s"] = options.pop("snapshot_pause")
    options["lifetime_s"] = options.pop("lifetime")
    options["throttle_drop_s"] = options.pop("throttle_drop")
    options["heavy"] = dict(parse_heavy(text) for text in heavies)
    config = SimulatorConfig(venues=venues, captures={venues[0]: capture} if capture else {}, speed=speed, tls=not plain, enforce=not no_limits, **options)
    try:
        simulator = Simulator(config)
    except ValueError as problem:
        raise click.UsageError(str(problem)) from None
    outputs = Outputs(simulator, config_out, oracle_out, as_json, name, workers)
    try:
        uvloop.run(run(simulator, outputs, [parse_fault(text) for text in faults], seconds, exit_when_done))
    except OSError as problem:
        raise click.ClickException(f"{problem.filename or 'simulate'}: {problem.strerror or problem}; give another path or port") from None
    except (CaptureError, FaultError) as problem:
        raise click.ClickException(str(problem)) from None


def positive(text, option):
    try:
        value = float(text)
    except ValueError:
        value = 0
    if value <= 0:
        raise click.UsageError(f"{option} {text!r} is not a positive number or {'max' if option == '--speed' else 'all'}")
    return value


def parse_fault(text):
    """KIND,field=value,… as a dict for Faults.add; numbers become numbers."""
    kind, *pairs = text.split(",")
    fault = {"kind": kind}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals:
            raise click.UsageError(f"--fault {text!r}: {pair!r} is not FIELD=VALUE")
        fault[name] = int(value) if value.isdigit() else float(value) if name in ("seconds", "messages_per_s", "drop_after_s") else value
    return fault


def parse_heavy(text):
    """(symbol, factor) of SYMBOL=FACTOR."""
    symbol, _, factor = text.partition("=")
    if not symbol or not factor.isdigit() or int(factor) not in range(1, HEAVY_MAX + 1):
        raise click.UsageError(f"--heavy {text!r} is not SYMBOL=FACTOR with a factor of 1..{HEAVY_MAX}")
    return symbol, int(factor)


class Outputs:
    """What goes to stdout, stderr and files."""

    def __init__(self, simulator, config_out, oracle_out, as_json, name, workers):
        self.simulator = simulator
        self.config_out, self.oracle_out, self.as_json = config_out, oracle_out, as_json
        self.name, self.workers = name, workers
        self.frames = 0

    def started(self):
        simulator = self.simulator
        if self.config_out:
            partial = pathlib.Path(self.config_out + ".partial")   # who waits for the file finds it whole
            partial.write_text(simulator.feedhandler_config(self.name, self.workers))
            partial.replace(self.config_out)
        if self.as_json:
            click.echo(json.dumps({"endpoints": simulator.endpoints, "ca_file": simulator.ca_file, "admin": simulator.admin}))
            return
        for venue, ends in simulator.endpoints.items():
            for endpoint, url in ends["urls"].items():
                click.echo(f"{venue:14} {endpoint:12} {url}")
            click.echo(f"{venue:14} {'rest':12} {ends['rest']}")
        click.echo(f"ca_file {simulator.ca_file or '(plain)'}\nadmin   {simulator.admin}")

    def progress(self):
        report = self.simulator
        rate, self.frames = (report.frames_sent - self.frames) / PROGRESS_S, report.frames_sent
        subscriptions = sum(len(connection.streams) for connection in report.connections)
        click.echo(f"\r{len(report.connections)} connections, {subscriptions} subscriptions, {report.frames_sent} frames, {rate:.0f}/s \b",
                   err=True, nl=not sys.stderr.isatty())

    def ended(self):
        if self.oracle_out:
            pathlib.Path(self.oracle_out).write_text(json.dumps(self.simulator.documents(), indent=1))
        report = self.simulator.report()
        if self.as_json:
            click.echo(json.dumps(report))
            return
        click.echo(f"\nsent {report['frames_sent']} frames, {report['bytes_sent']} bytes over {report['connections_opened']} connections")
        for name, meter in report["usage"].items():
            if meter["hits"]:
                click.echo(f"{name}: at most {meter['used_max']:g} of {meter['limit']:g} ({meter['ratio']:.0%}), broken {meter['violations']} times")


async def run(simulator, outputs, faults, seconds, exit_when_done):
    """Until a signal, the end of the recording (when asked), or so many seconds."""
    import asyncio
    import signal
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    await simulator.start()
    try:
        for fault in faults:
            simulator.faults.add(**fault)
        outputs.started()
        sys.stdout.flush()
        await wait(simulator, outputs, ended, seconds, exit_when_done)
    finally:
        await simulator.stop()
    outputs.ended()


async def wait(simulator, outputs, ended, seconds, exit_when_done):
    import asyncio
    watch = [asyncio.create_task(ended.wait())]
    if exit_when_done and simulator.players:
        watch.append(asyncio.create_task(simulator.wait_finished()))
    if seconds is not None:
        watch.append(asyncio.create_task(asyncio.sleep(seconds)))
    try:
        done = set()
        while not done:
            done, _ = await asyncio.wait(watch, timeout=PROGRESS_S, return_when=asyncio.FIRST_COMPLETED)
            failed = [task for task in simulator.tasks if task.done() and not task.cancelled() and task.exception()]
            if failed:
                raise failed[0].exception()
            outputs.progress()
        for task in done:
            task.result()
    finally:
        for task in watch:
            task.cancel()
