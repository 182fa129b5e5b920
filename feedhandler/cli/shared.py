"""Verbs that read shared memory directly and work when the supervisor is dead: stats, latency, gaps, errors, readers."""
import time

import click

from feedhandler.cli import common


def _counters(name):
    """Every worker's Counters of an instance, or a Failure that says what to run."""
    from feedhandler import instance
    from feedhandler.counters import Counters
    directory = instance.directory(name)
    manifest = common.manifest(name)
    found = []
    for worker in manifest["workers"]:
        try:
            found.append(Counters(directory, worker["worker"]))
        except OSError as error:
            common.fail(f"worker {worker['worker']} of {name} has no counters ({error}); run feedhandler status -n {name}")
    return found


def _sum(counters):
    total = {}
    for worker in counters:
        for key, value in worker.values().items():
            total[key] = max(total.get(key, 0), value) if key.endswith("_max") else total.get(key, 0) + value
    return total


RATES = ("frames", "frame_bytes", "records", "book_gaps", "frames_malformed", "frames_unknown", "stale_streams")


@click.command("stats")
@common.instance_option
@common.json_option
@click.option("-w", "--watch", type=click.FloatRange(min=0.1), metavar="SECONDS", help="A line every SECONDS until Ctrl-C.")
@click.option("--counters", "every", is_flag=True, help="Every counter of every worker.")
@common.quiet_interrupt
def cmd_stats(name, as_json, watch, every):
    """Counters of an instance: totals, or rates a second with --watch.

    \b
    feedhandler stats -n demo
    feedhandler stats -n demo -w 1
    """
    counters = _counters(name)
    if watch:
        _watch(counters, as_json, watch)
        return
    document = {"name": name, "total": _sum(counters), "workers": [{"worker": c.worker, **c.values()} for c in counters]}

    def human(document):
        if every:
            headings = ["counter"] + [f"worker {c.worker}" for c in counters]
            rows = [[key] + [f"{c.values()[key]:,}" for c in counters] for key in document["total"]]
        else:
            headings = ["counter", "total"]
            rows = [[key, f"{value:,}"] for key, value in document["total"].items() if value]
        click.echo(common.columns(rows, headings, right=headings[1:]))
    common.output(as_json, document, human)


def _watch(counters, as_json, seconds):
    """One line of rates every `seconds`; never returns but by Ctrl-C."""
    before, then = _sum(counters), time.monotonic()
    if not as_json:
        click.echo("  ".join(f"{key + '/s':>18}" for key in RATES))
    while True:
        time.sleep(seconds)
        total, now = _sum(counters), time.monotonic()
        rates = {key: (total[key] - before[key]) / (now - then) for key in RATES}
        common.output(as_json, {"ts_ns": time.time_ns(), **{f"{key}_per_s": round(rate, 3) for key, rate in rates.items()}},
                      lambda document: click.echo("  ".join(f"{rates[key]:>18,.0f}" for key in RATES)))
        before, then = total, now


@click.command("latency")
@common.instance_option
@common.json_option
def cmd_latency(name, as_json):
    """Latency percentiles a stage and worker, in microseconds.

    decode: socket read to decoded · publish: socket read to visible in the ring · venue: the venue's event time to
    socket read (needs synchronised clocks) · loop: one turn of the event loop · first_data: subscription to first data

    \b
    feedhandler latency -n demo
    """
    from feedhandler.counters import STAGES
    counters = _counters(name)
    document = {"name": name, "workers": [{"worker": c.worker, **{stage: c.latency(stage) for stage in STAGES}} for c in counters]}

    def human(document):
        rows = []
        for worker in document["workers"]:
            for stage in STAGES:
                figures = worker[stage]
                rows.append([str(worker["worker"]), stage, f"{figures['count']:,}"] + [
                    f"{figures[key] / 1000:,.1f}" for key in ("p50_ns", "p90_ns", "p99_ns", "p99.9_ns", "max_ns")])
        headings = ["worker", "stage", "count", "p50 µs", "p90", "p99", "p99.9", "max"]
        click.echo(common.columns(rows, headings, right=headings[2:]))
    common.output(as_json, document, human)


GAP_COUNTERS = ("book_gaps", "book_resyncs", "book_checksum_bad", "book_stale", "duplicates", "stale_streams", "first_data_missed",
                "book_pending_dropped")


@click.command("gaps")
@common.instance_option
@common.json_option
def cmd_gaps(name, as_json):
    """Where data was lost: each stream with its count, last time (UTC) and cause; books out of sync now; totals a worker.

    Streams are the supervisor's knowledge; when it is dead, books, connections and totals still come from shared
    memory. Exit code 0 also with gaps.

    \b
    feedhandler gaps -n demo
    """
    counters = _counters(name)
    document = {"name": name, "streams": _streams_with_gaps(name), "books_unwell": _books_unwell(name),
                "sessions": [session for c in counters for session in c.sessions() if session["gaps"]],
                "workers": [{"worker": c.worker, **{key: c.values()[key] for key in GAP_COUNTERS}} for c in counters]}
    common.output(as_json, document, _show_gaps)


def _streams_with_gaps(name):
    """Rows of streams that ever had a gap, or are in one; None when no supervisor answers."""
    from feedhandler.supervisor import client
    try:
        rows = client.request(name, "subs")["streams"]
    except (client.NotRunning, client.Refused):
        return None
    kept = ("id", "venue", "instrument", "channel", "worker", "connection", "state", "gaps", "gap_ns", "gap_reason")
    return [{key: row[key] for key in kept} for row in rows if row["gaps"] or row["state"] == "GAP"]


def _books_unwell(name):
    """Instruments whose book is out of sync now, from `state`."""
    from feedhandler.reader import FeedError, attach
    try:
        with attach(name, reader_name="gaps") as feed:
            last = [(row, feed.quote(row)) for row in feed.instruments]
    except FeedError as error:
        common.fail(str(error))
    return [{"venue": row.venue, "instrument": row.canonical, "status": value.status, "ts_recv_ns": value.ts_recv_ns}
            for row, value in last if value is not None and value.status not in (None, "LIVE")]


def _show_gaps(document):
    if document["streams"] is None:
        click.echo(f"no supervisor answers, so streams are not known; feedhandler start -n {document['name']} adopts the workers\n")
    elif document["streams"]:
        click.echo(common.columns(
            [[s["venue"], s["instrument"], s["channel"], s["state"], f"{s['gaps']:,}", _clock(s["gap_ns"]) if s["gap_ns"] else "-",
              s["gap_reason"] or "-"] for s in document["streams"]],
            ["venue", "instrument", "channel", "state", "gaps", "last", "cause"], right=("gaps",)) + "\n")
    else:
        click.echo("no stream has had a gap\n")
    for book in document["books_unwell"]:
        click.echo(common.printable(f"{book['venue']} {book['instrument']}: the book is {book['status']} now"))
    if document["sessions"]:
        click.echo(common.columns(
            [[str(s["worker"]), str(s["session"]), s["venue"], s["endpoint"], f"{s['gaps']:,}", f"{s['reconnects']:,}"]
             for s in document["sessions"]], ["worker", "session", "venue", "endpoint", "gaps", "reconnects"], right=("gaps", "reconnects")) + "\n")
    rows = [[str(worker["worker"])] + [f"{worker[key]:,}" for key in GAP_COUNTERS] for worker in document["workers"]]
    click.echo(common.columns(rows, ["worker"] + list(GAP_COUNTERS), right=GAP_COUNTERS))


@click.command("errors")
@common.instance_option
@common.json_option
def cmd_errors(name, as_json):
    """Distinct errors of all workers with their counts, first and last time (UTC).

    \b
    feedhandler errors -n demo
    """
    errors = sorted((error for c in _counters(name) for error in c.errors()), key=lambda error: -error["count"])
    document = {"name": name, "errors": errors}

    def human(document):
        if not errors:
            click.echo("no errors")
            return
        rows = [[f"{e['count']:,}", str(e["worker"]), _clock(e["first_ns"]), _clock(e["last_ns"]), e["text"]] for e in errors]
        click.echo(common.columns(rows, ["count", "worker", "first", "last", "what"], right=("count",)))
    common.output(as_json, document, human)


def _clock(ns):
    return time.strftime("%H:%M:%S", time.gmtime(ns // 10**9)) + f".{ns // 10**6 % 1000:03d}"


@click.command("readers")
@common.instance_option
@common.json_option
def cmd_readers(name, as_json):
    """Attached readers: lag in records behind each ring's head, and records lost to lapping.

    \b
    feedhandler readers -n demo
    """
    from feedhandler.reader import readers
    common.manifest(name)
    document = {"name": name, "readers": readers(name)}

    def human(document):
        if not document["readers"]:
            click.echo(f"no reader is attached; attach one with feedhandler tail -n {name}")
            return
        rows = [[str(r["pid"]), r["name"], "yes" if r["alive"] else "no", f"{r['polled_ago_s']:.1f}", f"{r['lag']:,}", f"{r['lost']:,}"]
                for r in document["readers"]]
        click.echo(common.columns(rows, ["pid", "name", "alive", "polled s ago", "lag", "lost"], right=("polled s ago", "lag", "lost")))
    common.output(as_json, document, human)
