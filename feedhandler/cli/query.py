"""status, subs and conns: what the supervisor knows. When it is dead, status says what still lives."""
import sys
import time

import click

from feedhandler.cli import common, moves


def _ask(name, verb):
    """The supervisor's answer, or None and its NotRunning."""
    from feedhandler import instance
    from feedhandler.supervisor import client
    try:
        return client.request(name, verb), None
    except client.NotRunning as error:
        return None, error
    except (client.Refused, instance.InstanceError) as error:
        common.fail(str(error))


@click.command("status")
@common.instance_option
@common.json_option
def cmd_status(name, as_json):
    """Health of an instance on one screen. Exit code 0 well, 4 degraded, 3 not running.

    \b
    feedhandler status -n demo
    """
    document, missing = _ask(name, "status")
    if document is None:
        if missing.manifest is None:
            common.fail(str(missing), common.NOT_RUNNING)
        document = _orphans(name, missing)
    common.output(as_json, document, _screen)
    sys.exit({"ok": common.OK, "starting": common.OK}.get(document["state"], common.DEGRADED))


def _orphans(name, missing):
    """A status without a supervisor: what the manifest and /proc say."""
    from feedhandler import instance
    workers = [{"worker": row["worker"], "pid": row["pid"], "cpu": row.get("cpu"),
                "state": "UP" if instance.alive(row["pid"], row["pid_start"]) else "DOWN"} for row in missing.manifest["workers"]]
    return {"name": name, "state": "degraded", "reasons": [str(missing)], "pid": None, "workers": workers}


def _screen(document):
    click.echo(f"{document['name']}: {document['state']}")
    for reason in document["reasons"]:
        click.echo(common.printable(f"  ! {reason}"))
    if document["pid"] is None:
        return
    streams = document["streams"]
    click.echo(f"supervisor {document['pid']}, up {_span(document['uptime_s'])}, {document['connections']['up']} of {document['connections']['planned']} "
               f"connections up, {streams.get('live', 0)} of {streams['total']} streams live{_held(streams)}\n")
    click.echo(common.columns(
        [[str(w["worker"]), str(w["pid"]), "-" if w["cpu"] is None else str(w["cpu"]), w["state"], _figure(w["heartbeat_ms"]), str(w["epoch"]),
          str(w["restarts"]), _figure(w["cpu_percent"]), "-" if w["rss_bytes"] is None else f"{w['rss_bytes'] >> 20:,}", str(w["connections"]),
          str(w["streams"])] for w in document["workers"]],
        ["worker", "pid", "cpu", "state", "beat ms", "epoch", "restarts", "cpu %", "MiB", "conns", "streams"],
        right=("pid", "cpu", "beat ms", "epoch", "restarts", "cpu %", "MiB", "conns", "streams")))
    click.echo()
    click.echo(common.columns(
        [[v["venue"], str(v["instruments"]), f"{v['live']}/{v['streams']}", str(v["connections"]), f"{v['streams']}/{_figure(v['slots'])}",
          _figure(v["first_data_s"])] for v in document["venues"]],
        ["venue", "instruments", "live", "conns", "slots used", "first data s"], right=("instruments", "live", "conns", "slots used", "first data s")))
    spent = [row for row in document["budgets"] if row["used"] or "banned_until_ns" in row]
    if spent:
        click.echo()
        click.echo(common.columns([[row["budget"], f"{row['used']}/{row['allowed']}", _until(row)] for row in spent],
                                  ["budget (80 % of the limit)", "used", "banned until"], right=("used",)))
    click.echo()
    for event in document["events"]:
        fields = " ".join(f"{key}={value}" for key, value in event.items() if key not in ("ts_ns", "event"))
        click.echo(common.printable(f"{_clock(event['ts_ns'])} {event['event']} {fields}"[:150]))


def _figure(value):
    return "-" if value is None else f"{value:g}"


def _span(seconds):
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


def _clock(ns):
    return time.strftime("%H:%M:%S", time.gmtime(ns // 10**9)) + f".{ns // 10**6 % 1000:03}"


def _held(streams):
    return f", {streams['held']} held by standbys" if streams.get("held") else ""


def _hours(seconds):
    return "-" if seconds is None else f"{max(0, seconds) / 3600:.1f} h"


def _until(row):
    return f"{_clock(row['banned_until_ns'])}Z, {row['banned_s']:,.0f} s left: {row['reason']}" if "banned_until_ns" in row else ""


@click.group("subs")
def cmd_subs():
    """Subscriptions: list, add, remove, move."""


@cmd_subs.command("list")
@common.instance_option
@common.json_option
@click.option("--state", help="Only streams in this state, as in GAP.")
@click.option("--venue", help="Only this venue.")
def subs_list(name, as_json, state, venue):
    """Every stream: where it lives and how it is.

    \b
    feedhandler subs list -n demo --state REJECTED
    """
    document = _answer(name, "subs")
    document["streams"] = [row for row in document["streams"] if (not state or row["state"] == state.upper()) and (not venue or row["venue"] == venue)]

    def human(document):
        click.echo(common.columns(
            [[str(s["id"]), s["venue"], s["instrument"], s["channel"], str(s["worker"]), str(s["connection"]), s["state"], f"{s['messages']:,}",
              f"{s['gaps']:,}", s["reason"]] for s in document["streams"]],
            ["id", "venue", "instrument", "channel", "worker", "conn", "state", "messages", "gaps", "reason"], right=("id", "worker", "conn", "messages", "gaps")))
    common.output(as_json, document, human)


def _change_verb(verb, text):
    """subs add and subs remove: the trailing words that name channels are channels."""
    @cmd_subs.command(verb, help=text)
    @common.instance_option
    @common.json_option
    @click.option("--dry-run", is_flag=True, help="Only say what would change.")
    @click.argument("venue")
    @click.argument("words", nargs=-1, required=True, metavar="SYMBOL... CHANNEL...")
    def change(name, as_json, dry_run, venue, words):
        from feedhandler.cli import changes
        changes.show(changes.ask(name, f"subs {verb}", {"venue": venue, "dry_run": dry_run, **changes.split(words)}), as_json)


_change_verb("add", "Subscribe more, now: nothing else is touched.\n\n\b\nfeedhandler subs add okx BTC-USDT ETH-USDT trade book -n demo")
_change_verb("remove", "Let subscriptions go, now: nothing else is touched.\n\n\b\nfeedhandler subs remove okx BTC-USDT trade -n demo")

moves.subs_move(cmd_subs)


@click.command("conns")
@common.instance_option
@common.json_option
def cmd_conns(name, as_json):
    """Every connection, and what it carries of what it may.

    Of streams with two lines, "won" is the share of events that this connection brought first, "behind" how much later the
    others came.

    \b
    feedhandler conns -n demo
    """
    document = _answer(name, "conns")

    def human(document):
        click.echo(common.columns(
            [[str(c["id"]), c["venue"], c["endpoint"], str(c["worker"]), "ABS"[c["line"]], c["state"], f"{c['streams_live']}/{c['streams']}",
              _figure(c["slots"]), f"{c['reconnects']:,}", str(c["close_code"] or "-"), _hours(c["replaced_s"]), _figure(c["won_percent"]),
              _figure(c["behind_us"]), c["reason"]] for c in document["connections"]],
            ["id", "venue", "endpoint", "worker", "line", "state", "live", "slots", "reconnects", "last close", "replaced in", "won %", "behind µs", "reason"],
            right=("id", "worker", "live", "slots", "reconnects", "last close", "replaced in", "won %", "behind µs")))
        common.bans(document["bans"])
    common.output(as_json, document, human)


def _answer(name, verb):
    document, missing = _ask(name, verb)
    if document is None:
        common.fail(str(missing), common.NOT_RUNNING if missing.manifest is None else common.DEGRADED)
    return document
