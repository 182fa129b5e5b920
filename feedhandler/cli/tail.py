"""tail: print records as they arrive."""
import itertools

import click

from feedhandler.cli import common


@click.command("tail")
@common.instance_option
@common.json_option
@click.argument("symbols", nargs=-1)
@click.option("-k", "--kind", "kinds", multiple=True, help="Only this kind (trade, quote, touch, level, status, …); repeatable.")
@click.option("-c", "--count", type=click.IntRange(min=1), help="Stop after this many records.")
@click.option("--seconds", type=click.FloatRange(min=0), help="Stop after this many seconds.")
@common.quiet_interrupt
def cmd_tail(name, as_json, symbols, kinds, count, seconds):
    """Print records as they arrive, of all instruments or of SYMBOLS (canonical, or venue:symbol).

    \b
    feedhandler tail -n demo BTC-USDT -k trade -c 10
    feedhandler tail -n demo binance-usdm:BTC-USDT-PERP --json
    """
    import feedhandler
    from feedhandler.reader import KINDS
    unknown = sorted(set(kinds) - set(KINDS.values()))
    if unknown:
        common.fail(f"kind {unknown[0]!r} is not known; use one of {', '.join(KINDS.values())}", common.USAGE)
    common.manifest(name)
    try:
        feed = feedhandler.attach(name, reader_name="tail")
    except feedhandler.FeedError as error:
        common.fail(str(error), common.NOT_RUNNING)
    with feed:
        wanted = _wanted(feed, symbols)
        records = feed.records(timeout=seconds) if seconds is not None else iter(feed)
        chosen = (r for r in records if (not kinds or r.kind in kinds) and (wanted is None or r.instrument in wanted))
        for record in itertools.islice(chosen, count):
            _print(feed, record, as_json)


def _wanted(feed, symbols):
    """Ids of the instruments that SYMBOLS name; None for all."""
    if not symbols:
        return None
    wanted = set()
    for text in symbols:
        venue, _, symbol = text.rpartition(":")
        found = [i.id for i in feed.instruments if symbol in (i.canonical, i.symbol) and venue in ("", i.venue)]
        if not found:
            common.fail(f"no instrument {text!r} in this instance; feedhandler subs list shows them", common.USAGE)
        wanted.update(found)
    return wanted


def _print(feed, record, as_json):
    fields = record.as_dict()
    row = feed.instrument_at(record.instrument) if record.instrument is not None else None
    fields = {"venue": row.venue if row else None, "symbol": row.canonical if row else None, **fields}

    def human(fields):
        values = " ".join(f"{key}={fields[key]}" for key in record.FIELDS)
        flags = " ".join(fields["flags"])
        click.echo(common.printable(f"{record.ts_recv_ns} {fields['venue'] or '-':<14} {fields['symbol'] or '-':<22} {record.kind:<13} {values} {flags}"))
    common.output(as_json, fields, human)
