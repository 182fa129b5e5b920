"""capacity and plan: what the venues allow, what is used of it, what would be better."""
import functools

import click

from feedhandler.cli import common, headroom
from feedhandler.cli.headroom import bar as _bar, forecast as _forecast, number as _number
from feedhandler.cli.probe import cmd_probe


@click.group("capacity", invoke_without_command=True)
@common.instance_option
@common.json_option
@click.option("--all", "every", is_flag=True, help="Every line; otherwise the 20 worst of each section.")
@click.option("--profile", "profiles", is_flag=True, help="What the venues allow, with sources; needs no instance.")
@click.option("-c", "--config", "path", metavar="FILE", help="With --profile: apply this configuration's limits.")
@click.pass_context
def cmd_capacity(context, name, as_json, every, profiles, path):
    """Budgets of workers, addresses and connections: what is used of what they are kept to, what is left, and when they are full.

    What is full first stands on top; ~ marks rates that are measured, or guessed until then. Full in: at the growth of the last half hour.

    \b
    feedhandler capacity -n demo
    feedhandler capacity --profile
    feedhandler capacity probe --venue binance-spot -c sim.toml
    """
    if context.invoked_subcommand:
        return
    if path and not profiles:
        common.fail("-c goes with --profile; a running instance knows its own configuration", common.USAGE)
    if profiles:
        common.output(as_json, _profiles(path), _profile_screen)
    else:
        common.output(as_json, _answer(name, "capacity"), functools.partial(_capacity_screen, every=every))


cmd_capacity.add_command(cmd_probe)


def _answer(name, verb):
    from feedhandler.cli.query import _answer as answer
    return answer(name, verb)


def _profiles(path):
    """All venues' profiles, with the limits of a configuration in their places."""
    from feedhandler import venues
    from feedhandler.capacity import profile
    from feedhandler.cli.config import _load
    tables = _load(path).venues if path else {}
    found = []
    for name in venues.names():
        for endpoint, document in venues.load(name, 1).profiles.items():
            table = tables.get(name)
            limits = table.limits[endpoint].model_dump(exclude_none=True) if table and endpoint in table.limits else {}
            rows = profile.described(profile.merge(document, limits))
            found.append({"venue": name, "endpoint": endpoint, "as_of": document.get("as_of"), "confidence": document.get("confidence"),
                          "sources": document.get("sources", []), "notes": document.get("notes", []), "overrides": sorted(limits), "budgets": rows})
    return {"profiles": found}


def _profile_screen(document):
    for profile in document["profiles"]:
        click.echo(f"{profile['venue']} {profile['endpoint']}: {profile['confidence']}, as of {profile['as_of']}")
        click.echo(common.columns([[row["kind"], row["what"], _plain(row["documented"]), _plain(row["used_to"]), row["note"]] for row in profile["budgets"]],
                                  ["budget", "of what", "documented", "used to", "note"], right=("documented", "used to")))
        if profile["overrides"]:
            click.echo(common.printable(f"  overridden by the configuration: {', '.join(profile['overrides'])}"))
        for label in ("sources", "notes"):
            for text in profile[label]:
                click.echo(common.printable(f"  {label[:-1]}: {text}"))
        click.echo()


def _plain(value):
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _capacity_screen(document, every):
    click.echo(f"{document['name']}: {document['learned']} of {document['streams']} streams measured, the others' rates are guessed\n")
    headroom.show(document["budgets"], document["connections"], every)
    for row in document["permits"]:
        if row["used"]:
            click.echo(common.printable(f"permits {row['budget']}: {row['used']} of {row['allowed']} used"))
    for row in document["held"]:
        click.echo(common.printable(_held(row)))
    common.bans(document["bans"])
    _forecast(document["next"])


def _held(row):
    """Who holds how much of an address."""
    others = "".join(f", {name} {count:,}" for name, count in row["others"].items())
    limit = "" if row["limit"] is None else f"; all together may {row['limit']:,}"
    return f"{row['what']} at {row['venue']}/{row['endpoint']}: this instance {row['ours']:,}{others}{limit}"


@click.command("plan")
@common.instance_option
@common.json_option
@click.option("--apply", "is_applied", is_flag=True, help="Make the moves, as rebalance does.")
def cmd_plan(name, as_json, is_applied):
    """What rebalancing would change by the loads learned so far, why, and the budgets before and after.

    \b
    feedhandler plan -n demo
    feedhandler plan -n demo --apply
    """
    if is_applied:
        from feedhandler.cli import moves
        moves.rebalance(name, as_json)
        return
    common.output(as_json, _answer(name, "plan"), _plan_screen)


def _plan_screen(document):
    moves = document["moves"]
    click.echo(f"{document['name']}: {len(moves)} move{'s' * (len(moves) != 1)} would pay" if moves else f"{document['name']}: nothing would be moved")
    for move in moves:
        first = move["streams"][0]
        more = f" and {len(move['streams']) - 1} more" if len(move["streams"]) > 1 else ""
        click.echo(common.printable(f"  {move['kind']} {first['venue']} {first['wire']}{more}: {_way(move, first)}: {move['reason']}"))
    for text in [remedy["reason"] for remedy in document["remedies"]] + document["problems"]:
        click.echo(common.printable(f"  ! {text}"))
    click.echo()
    click.echo(_compared(document["before"], document["after"]))
    _forecast(document["next"])


def _way(move, stream):
    ends = []
    for worker, connection in ((move["from_worker"], stream["from"]), (move["to_worker"], stream["to"])):
        ends.append("-" if connection is None else f"connection {connection} of worker {worker}")
    return " → ".join(ends)


def _compared(before, after):
    """Budgets with a limit, before and after."""
    was, will = ({(row["where"], row["what"]): row for row in rows if row["limit"]} for rows in (before, after))
    rows = []
    for key in [*was, *(key for key in will if key not in was)]:
        limit = (will.get(key) or was[key])["limit"]
        used = [table[key]["used"] if key in table else 0 for table in (was, will)]
        rows.append([*key, _number(used[0]), _number(used[1]), _number(limit), _bar(used[1], limit)])
    return common.columns(rows, ["where", "budget", "now", "after", "limit", ""], right=("now", "after", "limit"))
