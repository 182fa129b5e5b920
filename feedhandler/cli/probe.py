"""capacity probe: load one connection of a venue step by step until it lags or is dropped."""
import os
import sys

import click

from feedhandler.cli import common

HEADINGS = (("step", 5), ("streams", 8), ("due/s", 9), ("messages/s", 11), ("kB/s", 9), ("lag p50", 9), ("p99 ms", 9), ("rise/s", 8), ("unread", 9))
CONSENT = "--yes-probe-real-venue and --i-accept-being-banned"
SETTLE_GUESS_S = 2.0     # that a step's streams take to come up, for the estimate only


@click.command("probe")
@click.option("--venue", required=True, help="Venue to load.")
@click.option("-c", "--config", "path", metavar="FILE", type=click.Path(dir_okay=False),
              help="Configuration with the venue's addresses, as feedhandler simulate --config-out writes it. Without: the real ones.")
@click.option("--channels", default="trade,quote", show_default=True, help="Channels of every instrument. A book may cost REST weight for its snapshot.")
@click.option("--steps", default=8, show_default=True, type=click.IntRange(1, 100), help="Steps up to the most streams.")
@click.option("--step-seconds", default=10.0, show_default=True, type=click.FloatRange(1, 600), help="How long a step is watched.")
@click.option("--symbols-max", default=100, show_default=True, type=click.IntRange(1, 5000), help="Instruments taken: the configuration's, then the venue's list.")
@click.option("--endpoint", default="", help="Endpoint, where the channels live on several; default: the one with most of the streams.")
@click.option("--yes-probe-real-venue", "real_meant", is_flag=True, help="The venue is a real one, and you mean it.")
@click.option("--i-accept-being-banned", "ban_accepted", is_flag=True, help="A real venue may shut out this address, and all instances on it.")
@common.json_option
def cmd_probe(venue, path, real_meant, ban_accepted, as_json, channels, **options):
    """How much one connection carries: streams are added step by step, until event times fall behind or the venue closes.

    The load is that of the streams; a venue's documented limits are kept to 80 %. A simulated venue is loaded until it drops the
    connection. A real one needs two flags that say so, and is left at the first sign of throttling. One connection attempt and the
    REST requests are spent from this address's budgets. Ctrl-C ends it at once.

    \b
    feedhandler simulate --rate-each 50 --throttle-above 2000 --instruments 40 --config-out sim.toml &
    feedhandler capacity probe --venue binance-spot -c sim.toml --step-seconds 2
    """
    from feedhandler import probe, venues
    if venue not in venues.names():
        common.fail(f"venue {venue!r} is not known; use one of {', '.join(venues.names())}", common.USAGE)
    settings = _settings(path)
    chosen = probe.Options(venue, _channels(channels), **options)
    home = probe.home_of(settings, os.path.dirname(os.path.abspath(path or ".")), venue)
    if chosen.endpoint and chosen.endpoint not in home.urls:
        common.fail(f"{venue} has no endpoint {chosen.endpoint!r}; use one of {', '.join(home.urls)}", common.USAGE)
    if probe.is_real(home):
        _consent(home, chosen, real_meant and ban_accepted)
    screen = _Screen(as_json)
    try:
        document = probe.run(settings, os.path.dirname(os.path.abspath(path or ".")), chosen, screen.begun, screen.ended)
    except probe.ProbeError as error:
        common.fail(str(error))
    except OSError as error:
        common.fail(f"{error}; the probe needs some 20 MB in /dev/shm and a state folder it may write ($XDG_STATE_HOME)")
    common.output(as_json, document, _show)
    sys.exit(common.FAILED if document["interrupted"] else common.OK)


def _settings(path):
    from feedhandler import config
    from feedhandler.cli.config import _load
    return _load(path) if path else config.Config()


def _channels(text):
    from feedhandler.config import Channel, VenueError
    words = tuple(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))
    try:
        for word in words:
            Channel.parse(word)
    except VenueError as error:
        common.fail(str(error), common.USAGE)
    return words or common.fail("--channels names none; give one or more, as in trade,quote,book", common.USAGE)


def _consent(home, options, given):
    """Say what will happen at a real venue; without consent end here, before anything was sent."""
    addresses = sorted({*home.urls.values(), home.rest_url} - {""})
    about_s = options.steps * (options.step_seconds + SETTLE_GUESS_S)
    plan = (f"{home.name} is a real venue ({', '.join(addresses)}): this reads its instrument list, opens one connection, subscribes "
            f"{', '.join(options.channels)} of up to {options.symbols_max} instruments in {options.steps} steps of {options.step_seconds:g} s, at most at "
            f"80 % of each documented limit, and stops at the first sign of throttling: about {about_s / 60:.0f} min")
    if not given:
        common.fail(f"{plan}. The venue may ban this address for it; nothing was sent. If that is meant, add {CONSENT}", common.USAGE)
    click.echo(common.printable(plan + "; Ctrl-C ends it at once"), err=True)


class _Screen:
    """A line a step, while it goes on."""

    def __init__(self, as_json):
        self.silent, self.headed = as_json, False
        self.live = sys.stdout.isatty()
        self.number = 0

    def begun(self, number, of, streams, due_per_s):
        self.number = number
        if self.silent:
            return
        if not self.headed:
            self.headed = True
            click.echo("".join(text.rjust(width) for text, width in HEADINGS) + "  verdict")
        if self.live:
            due = "" if due_per_s is None else f", about {due_per_s:,.0f} messages/s are due"
            click.echo(f"  step {number} of {of}: {streams} streams{due} …\r", nl=False)

    def ended(self, step):
        if not self.silent:
            cells = (self.number, step.streams, step.due_per_s, step.messages_per_s, step.bytes_per_s / 1000, step.lag_p50_ms, step.lag_p99_ms,
                     step.lag_rise_ms_per_s, step.queue_bytes)
            line = "".join(("-" if cell is None else f"{round(cell):,}").rjust(width) for cell, (_, width) in zip(cells, HEADINGS))
            click.echo(common.printable(f"{line}  {step.verdict}{': ' if step.reason else ''}{step.reason}") + ("\033[K" if self.live else ""))


def _show(document):
    for problem in document["problems"]:
        click.echo(common.printable(f"! {problem}"))
    if document["interrupted"]:
        click.echo("interrupted; what was measured until then:")
    click.echo(common.printable(f"{document['venue']} {document['endpoint']}: {document['text']}"))
    if document["config"]:
        click.echo(common.printable(f"keep the plan to it (now {document['configured_per_s']:,}) with\n\n{document['config']}"))
