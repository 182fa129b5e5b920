"""What every verb shares: the instance option, JSON output, errors with an exit code."""
import functools
import json
import os
import sys

import click

OK, FAILED, USAGE, NOT_RUNNING, DEGRADED = 0, 1, 2, 3, 4


class Failure(click.ClickException):
    """An error for a person: one sentence that ends with what to do next."""

    def __init__(self, text, code=FAILED):
        super().__init__(text)
        self.exit_code = code


def fail(text, code=FAILED):
    """End the verb with this sentence on stderr and this exit code."""
    raise Failure(text, code)


def printable(text):
    """text without control bytes: a venue's words must not drive a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in str(text))


def output(as_json, document, human):
    """Print document as one JSON line, or call human(document), which prints it for a person."""
    if as_json:
        click.echo(json.dumps(document, separators=(",", ":"), default=str))
    else:
        human(document)


def columns(rows, headings, right=()):
    """A plain table: rows of texts below headings, the named headings right-aligned."""
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [max([len(heading)] + [len(row[i]) for row in cells]) for i, heading in enumerate(headings)]
    lines = []
    for row in [list(headings)] + cells:
        lines.append("  ".join(cell.rjust(width) if heading in right else cell.ljust(width)
                               for cell, width, heading in zip(row, widths, headings)).rstrip())
    return "\n".join(lines)


def bans(rows):
    """Say of every budget the venue shut us out of until when, and why."""
    for row in rows:
        click.echo(printable(f"banned: {row['budget']}: {row['banned_s']:,.0f} s left: {row['reason']}"))


def checked_name(ctx, param, name):
    """name, or exit code 2: it becomes a path."""
    from feedhandler import instance
    try:
        return instance.check_name(name)
    except instance.InstanceError as error:
        fail(str(error), USAGE)


def instance_option(verb):
    """-n/--name, default $FEEDHANDLER_NAME or main."""
    return click.option("-n", "--name", default=lambda: os.environ.get("FEEDHANDLER_NAME", "main"), callback=checked_name,
                        show_default="main, or $FEEDHANDLER_NAME", help="Instance to talk to.")(verb)


def json_option(verb):
    return click.option("--json", "as_json", is_flag=True, help="Print JSON with a stable schema.")(verb)


def quiet_interrupt(verb):
    """Ctrl-C ends a watching verb as a normal end; a closed pipe (| head) is no error."""
    @functools.wraps(verb)
    def wrapped(*args, **kwargs):
        try:
            return verb(*args, **kwargs)
        except KeyboardInterrupt:
            sys.exit(OK)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(OK)
    return wrapped


def manifest(name):
    """The instance's manifest, or a Failure: not running, with the command that starts it."""
    from feedhandler import instance
    try:
        return instance.manifest_read(name)
    except FileNotFoundError:
        running = ", ".join(instance.names()) or "none"
        fail(f"no instance {name!r} is running (running: {running}); start one with feedhandler start -n {name}", NOT_RUNNING)
    except (ValueError, OSError) as error:
        fail(str(error), FAILED)
