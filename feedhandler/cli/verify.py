"""verify: a recording through the product's own decoders, books and ring, and a document of what came out."""
import json
import pathlib
import sys

import click

from feedhandler.cli import common

FAMILIES = {  # how a recording's name begins: venue
    "binance_spot": "binance-spot", "binance_us": "binance-spot", "binance_usdm": "binance-usdm",
    "binance_coinm": "binance-coinm", "okx": "okx", "deribit": "deribit", "kraken_spot_v2": "kraken"}


@click.command("verify")
@click.argument("captures", nargs=-1, required=True, type=click.Path(dir_okay=False))
@click.option("--venue", help="Venue of the recording; guessed from the file's name where it can be.")
@click.option("--expect", type=click.Path(dir_okay=False), help="Compare with this document; exit 1 on a difference.")
@common.json_option
def cmd_verify(captures, venue, expect, as_json):
    """Replay recordings (NAME.tsv.gz) as fast as they go and print books, trades and quotes with their digests.

    \b
    feedhandler verify okx_2022.head.tsv.gz --venue okx
    feedhandler verify binance_spot_2024.head.tsv.gz --expect expected/binance_spot_2024.head.json
    """
    from feedhandler import capture, venues, verify
    if expect and len(captures) > 1:
        common.fail("--expect compares one recording; give one", common.USAGE)
    differences = []
    for path in captures:
        name = venue or _venue_of(path)
        if name not in venues.names():
            common.fail(f"venue {name!r} is not known; use one of {', '.join(venues.names())}", common.USAGE)
        try:
            document = verify.verify(path, name, progress=None if as_json or not sys.stderr.isatty() else _progress)
            if expect:
                differences = verify.compare(document, json.loads(pathlib.Path(expect).read_text()))
        except FileNotFoundError as error:
            common.fail(f"{error.filename}: no such file; give a recording in the form NAME.tsv.gz")
        except (capture.CaptureError, ValueError) as error:
            common.fail(str(error))
        common.output(as_json, document, lambda document: _show(path, document))
    for difference in differences:
        click.echo(common.printable(difference), err=True)
    if expect and not as_json:
        click.echo("differs from what was expected" if differences else "matches what was expected")
    sys.exit(common.FAILED if differences else common.OK)


def _venue_of(path):
    base = pathlib.Path(path).name
    for family in sorted(FAMILIES, key=len, reverse=True):
        if base.startswith(family):
            return FAMILIES[family]
    common.fail(f"{path}: cannot tell the venue from the name; add --venue NAME", common.USAGE)


def _progress(done, total):
    click.echo(f"\r{done:,} of {total:,} bytes" if total else f"\r{done:,} lines", err=True, nl=done == total)


def _show(path, document):
    accounting = document.get("accounting", {})
    click.echo(f"{path}: {', '.join(f'{count:,} {kind}' for kind, count in accounting.items() if isinstance(count, int))}")
    rows = [[symbol, book["state"], f"{book['updates']:,}", str(book["gaps"]), f"{book['l1_changes']:,}",
             f"{book['levels'][0]}/{book['levels'][1]}", book["l1_sha256"][:12], book["all_sha256"][:12]]
            for symbol, book in document["books"].items()]
    headings = ["book", "state", "updates", "gaps", "l1 changes", "levels", "l1 digest", "book digest"]
    click.echo(common.columns(rows, headings, right=("updates", "gaps", "l1 changes")))
    rows = [[symbol, kind, f"{part['n']:,}", part["sha256"][:12]]
            for kind in ("trades", "bbo") for symbol, part in document[kind].items()]
    if rows:
        click.echo(common.columns(rows, ["symbol", "stream", "n", "digest"], right=("n",)))
