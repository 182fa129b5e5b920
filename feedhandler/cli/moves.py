"""moves, rebalance, subs move, drain and restart: streams change their places while data flows.

The supervisor does the work and answers a job's number at once; here its progress is shown. Ctrl-C stops the showing, not
the job.
"""
import sys
import time

import click

from feedhandler.cli import common

LOOK_PERIOD_S = 0.2
PROBLEM_MAX = 10
ADOPT_TIMEOUT_S = 60.0   # a supervisor that replaces another answers by then


def ask(name, verb, arguments=None):
    from feedhandler.cli import changes
    return changes.ask(name, verb, arguments or {})


def follow(name, document, as_json, what):
    """Show the progress of document["job"] until it ends; its last state goes into the document. Exit code 1 when it failed."""
    if document.get("job") is None:
        common.output(as_json, document, lambda document: click.echo(f"{name}: nothing to do"))
        return
    try:
        job = _watched(name, document["job"], as_json)
    except KeyboardInterrupt:
        click.echo(f"\nnot watched any more; {what} goes on: feedhandler moves -n {name}", err=True)
        sys.exit(common.OK)
    document["result"] = job
    common.output(as_json, document, _ended)
    sys.exit(common.OK if job["state"] == "done" else common.FAILED)


def _watched(name, id, as_json):
    shown = None
    while True:
        job = ask(name, "moves", {"job": id})["jobs"][0]
        line = _line(job)
        if not as_json and line != shown:
            click.echo(common.printable(line))
            shown = line
        if job["state"] != "running":
            return job
        time.sleep(LOOK_PERIOD_S)


def _line(job):
    return f"{job['verb']}: {job['done']} of {job['total']} moves made" + (f", {job['failed']} not" if job["failed"] else "") + (
        f": {job['text']}" if job["text"] else "")


def _ended(document):
    job = document["result"]
    for problem in job["problems"][:PROBLEM_MAX]:
        click.echo(common.printable(f"  ! {problem}"), err=True)
    if job["state"] == "failed":
        click.echo(f"not all of it was done; what moves is consistent: see feedhandler subs list -n {document['name']}", err=True)


@click.command("moves")
@common.instance_option
@common.json_option
@click.option("--job", type=int, help="Only this job.")
def cmd_moves(name, as_json, job):
    """Jobs and moves in flight: what is on its way, and how far it is.

    \b
    feedhandler moves -n demo
    """
    common.output(as_json, ask(name, "moves", {} if job is None else {"job": job}), _moves_screen)


def _moves_screen(document):
    if document["jobs"]:
        click.echo(common.columns([[str(job["id"]), job["verb"], job["state"], f"{job['done']}/{job['total']}", str(job["failed"]), job["text"]] for job in document["jobs"]],
                                  ["job", "verb", "state", "made", "failed", "text"], right=("job", "made", "failed")))
    else:
        click.echo("no job was started")
    click.echo(f"\n{len(document['in_flight'])} moves in flight, {document['waiting']} wait"
               + (f"; drained: worker {', '.join(map(str, document['drained']))}" if document["drained"] else "")
               + (f"; {document['standbys']['ready']} of {document['standbys']['total']} standbys ready" if document["standbys"]["total"] else ""))
    for move in document["in_flight"]:
        more = f" and {move['streams'] - 1} more" if move["streams"] > 1 else ""
        way = (f"worker {move['from_worker']} → {move['to_worker']}" if move["from_worker"] != move["to_worker"] else
               f"connection {move['from']} → {move['to']} of worker {move['to_worker']}")
        click.echo(common.printable(f"  {move['venue']} {move['wire']}{more}: {way}: {move['phase']} for {move['seconds']} s: {move['reason']}"))


@click.command("rebalance")
@common.instance_option
@common.json_option
@click.option("--dry-run", is_flag=True, help="Only say what would be moved, as plan does.")
def cmd_rebalance(name, as_json, dry_run):
    """Make the moves that `plan` proposes, in its order, while data flows.

    \b
    feedhandler rebalance -n demo
    """
    rebalance(name, as_json, dry_run)


def rebalance(name, as_json, dry_run=False):
    from feedhandler.cli.capacity import _plan_screen
    document = ask(name, "rebalance", {"dry_run": dry_run})
    if dry_run:
        common.output(as_json, document, _plan_screen)
        return
    if not as_json:
        _plan_screen(document)
        click.echo()
    follow(name, document, as_json, "rebalancing")


def subs_move(group):
    """The verb `subs move`, in its group."""
    @group.command("move")
    @common.instance_option
    @common.json_option
    @click.option("--to-worker", type=int, help="Move whole instruments to this worker.")
    @click.option("--to-connection", type=int, help="Move streams to this connection of their worker.")
    @click.argument("venue")
    @click.argument("words", nargs=-1, required=True, metavar="SYMBOL... [CHANNEL...]")
    def move(name, as_json, to_worker, to_connection, venue, words):
        """Move subscriptions to another worker or connection while data flows; nothing is lost or doubled.

        \b
        feedhandler subs move okx BTC-USDT --to-worker 1 -n demo
        feedhandler subs move okx BTC-USDT trade --to-connection 3 -n demo
        """
        from feedhandler.cli import changes
        if (to_worker is None) == (to_connection is None):
            common.fail("say where to, with either --to-worker N or --to-connection ID", common.USAGE)
        named = changes.split(words) if changes.names_channel(words[-1]) else {"symbols": list(dict.fromkeys(words)), "channels": []}
        if to_worker is not None and named["channels"]:
            common.fail("an instrument is moved to another worker with all its streams; leave the channels out", common.USAGE)
        follow(name, ask(name, "subs move", {"venue": venue, "to_worker": to_worker, "to_connection": to_connection, **named}), as_json, "the move")


@click.command("drain")
@common.instance_option
@common.json_option
@click.option("--undo", is_flag=True, help="Let it hold instruments again; rebalance gives it some.")
@click.argument("worker", type=click.IntRange(0))
def cmd_drain(name, as_json, undo, worker):
    """Move all instruments away from a worker while data flows, and give it none until --undo.

    \b
    feedhandler drain 1 -n demo
    feedhandler drain 1 --undo -n demo
    """
    document = ask(name, "drain", {"worker": worker, "undo": undo})
    if undo:
        common.output(as_json, document, lambda document: click.echo(
            f"worker {worker} may hold instruments again; feedhandler rebalance -n {name} gives it some"))
        return
    follow(name, document, as_json, "draining")


@click.command("restart")
@common.instance_option
@common.json_option
@click.option("--rolling", is_flag=True, help="One worker after the other, without a gap; a package upgraded meanwhile takes effect.")
@click.option("-c", "--config", "path", type=click.Path(dir_okay=False), help="Configuration file; without, the one it was started with.")
def cmd_restart(name, as_json, rolling, path):
    """Stop an instance and start it again, or with --rolling replace its processes one by one while data flows.

    Rolling: the supervisor is replaced first, its successor adopts the workers; then each worker is drained, ended, started
    anew and used again. It needs two workers. Afterwards the supervisor runs in the background.

    \b
    feedhandler restart -n demo --rolling
    """
    if rolling and path:
        common.fail("--rolling keeps the configuration; apply another one with feedhandler reload -c FILE", common.USAGE)
    (_rolling if rolling else _stop_and_start)(name, path, as_json)


def _stop_and_start(name, path, as_json):
    from feedhandler.cli import config, lifecycle
    path = path or ask(name, "status")["config"]
    config._load(path)       # before anything is stopped
    lifecycle.stop(name)
    document = lifecycle._spawn(path, name)
    lifecycle._show(document, as_json)
    sys.exit(document["code"])


def _rolling(name, path, as_json):
    from feedhandler.cli import lifecycle
    document = ask(name, "restart")
    lifecycle._await_end(name, document["pid"])
    started = lifecycle._spawn(document["config"], name)
    if started["status"] is None:
        common.fail(f"the next supervisor did not start: {started['text']}\nthe workers go on; correct it and run feedhandler start -n {name}")
    if not as_json:
        click.echo(f"supervisor {started['status']['pid']} has taken over {document['workers']} workers")
    follow(name, document, as_json, "the restart")
