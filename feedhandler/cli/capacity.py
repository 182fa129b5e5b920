"""capacity and plan: what the venues allow, what is used of it, what would be better."""
import click

from feedhandler.cli import common

BAR_SIZE = 20


@click.command("capacity")
@common.instance_option
@common.json_option
@click.option("--profile", "profiles", is_flag=True, help="What the venues allow, with sources; needs no instance.")
@click.option("-c", "--config", "path", metavar="FILE", help="With --profile: apply this configuration's limits.")
def cmd_capacity(name, as_json, profiles, path):
    """Every budget of connections, addresses and workers: what is used of what it is kept to.

    \b
    feedhandler capacity -n demo
    feedhandler capacity --profile
    """
    if path and not profiles:
        common.fail("-c goes with --profile; a running instance knows its own configuration", common.USAGE)
    if profiles:
        common.output(as_json, _profiles(path), _profile_screen)
    else:
        common.output(as_json, _answer(name, "capacity"), _capacity_screen)


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


def _capacity_screen(document):
    click.echo(f"{document['name']}: {document['learned']} of {document['streams']} streams measured, the others' rates are guessed")
    click.echo(_table(document["budgets"]))
    for row in document["permits"]:
        if row["used"]:
            click.echo(common.printable(f"permits {row['budget']}: {row['used']} of {row['allowed']} used"))
    _forecast(document["next"])


def _table(rows):
    return common.columns([[row["where"], row["what"], _number(row["used"]), _number(row["limit"]), _bar(row["used"], row["limit"])] for row in rows],
                          ["where", "budget", "used", "limit", ""], right=("used", "limit"))


def _number(value):
    return "-" if value is None else f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def _bar(used, limit):
    """used of limit as a bar; nothing where no limit is known."""
    if not limit:
        return ""
    full = min(BAR_SIZE, round(used / limit * BAR_SIZE))
    return f"[{'#' * full}{'.' * (BAR_SIZE - full)}] {used / limit:.0%}"


def _forecast(row):
    if row is not None and row["reached_s"] > 0:
        click.echo(f"at the present growth {row['where']} reaches its {row['what']} in {row['reached_s'] / 3600:.1f} h")
    elif row is not None:
        click.echo(f"{row['where']} is at its limit of {row['what']}")


@click.command("plan")
@common.instance_option
@common.json_option
def cmd_plan(name, as_json):
    """What rebalancing would change by the loads learned so far, why, and the budgets before and after. Changes nothing.

    \b
    feedhandler plan -n demo
    """
    common.output(as_json, _answer(name, "plan"), _plan_screen)


def _plan_screen(document):
    moves = document["moves"]
    click.echo(f"{document['name']}: {len(moves)} move{'s' * (len(moves) != 1)} would pay" if moves else f"{document['name']}: nothing would be moved")
    for move in moves:
        first = move["streams"][0]
        more = f" and {len(move['streams']) - 1} more" if len(move["streams"]) > 1 else ""
        click.echo(common.printable(f"  {move['kind']} {first['venue']} {first['wire']}{more}: {_way(move, first)}: {move['reason']}"))
    for problem in document["problems"]:
        click.echo(common.printable(f"  ! {problem}"))
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
