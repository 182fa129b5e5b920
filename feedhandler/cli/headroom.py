"""Budgets as a person reads them: one line each, what is reached first on top, a bar, what is left and for how long. Only text."""
import click

from feedhandler.cli import common

BAR_SIZE = 20
LINES_SHOWN = 20       # a section's, without --all
SOON_S = 86_400.0      # a budget that is full within a day comes before fuller ones that do not grow
UNITS = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))
SECTIONS = ("worker", "address", "connection")


def number(value):
    return "-" if value is None else f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def bar(used, limit):
    """used of limit as a bar; nothing where no limit is known."""
    if not limit:
        return ""
    full = min(BAR_SIZE, round(used / limit * BAR_SIZE))
    return f"[{'#' * full}{'.' * (BAR_SIZE - full)}] {used / limit:.0%}"


def span(seconds):
    """A time to come in the two largest units that fit: 45 s, 12 min, 3 h 20 min, 5 d 4 h."""
    if seconds > 365 * 86_400:
        return "over a year"
    seconds = max(1, round(seconds))
    at = next(at for at, (size, _) in enumerate(UNITS) if seconds >= size)
    parts = []
    for size, unit in UNITS[at:at + 2]:
        count, seconds = divmod(seconds, size)
        parts += [f"{count} {unit}"] if count and (unit != "s" or not parts) else []
    return " ".join(parts)


def reached(row):
    """When a budget is full at its present growth: "", "full" or a time."""
    if row["reached_s"] is None:
        return ""
    return span(row["reached_s"]) if row["reached_s"] > 0 else "full"


def worst_first(rows):
    """What is reached first, then what is fullest; without a limit last."""
    def order(row):
        soon = row["reached_s"] if row["reached_s"] is not None and row["reached_s"] <= SOON_S else float("inf")
        return soon, -row["used"] / row["limit"] if row["limit"] else 1.0
    return sorted(rows, key=order)


def show(rows, connections, every):
    """Print a section for workers, addresses and connections. connections: rows with id, venue, endpoint and worker. every: all lines,
    also those of connections that have no limit."""
    homes = {f"connection {row['id']}": f"connection {row['id']} {row['venue']}/{row['endpoint']} worker {row['worker']}" for row in connections}
    for section in SECTIONS:
        mine = worst_first([row for row in rows if row["where"].partition(" ")[0] == section])
        counted = mine if every or section != "connection" else [row for row in mine if row["limit"]]
        shown = counted if every else counted[:LINES_SHOWN]
        if shown:
            click.echo(_table(shown, homes))
        if len(counted) > len(shown):
            click.echo(f"and {len(counted) - len(shown)} more of {section}s, none fuller nor full sooner; --all shows them")
        if shown:
            click.echo()


def _table(rows, homes):
    return common.columns(
        [[homes.get(row["where"], row["where"]), row["what"], ("~" if row["learned"] else "") + number(row["used"]), number(row["limit"]),
          number(max(0, row["limit"] - row["used"])) if row["limit"] else "-", bar(row["used"], row["limit"]), reached(row)] for row in rows],
        ["where", "budget", "used", "limit", "left", "", "full in"], right=("used", "limit", "left"))


def forecast(row):
    """The one sentence on the budget that is reached first; None: none grows."""
    if row is not None and row["reached_s"] > 0:
        click.echo(common.printable(f"at the present growth {row['where']} reaches its {row['what']} in {span(row['reached_s'])}"))
    elif row is not None:
        click.echo(common.printable(f"{row['where']} is at its limit of {row['what']}"))
