"""The command line: one group, one module a group of verbs, loaded when its verb is called.

Exit codes: 0 ok, 1 failed, 2 usage, 3 not running, 4 degraded. Only this package prints.
"""
import importlib
import sys

import click

from feedhandler.cli import common

VERBS = {
    # verb: (module, one line of help, shown without loading the module)
    "init": ("config", "Write a commented configuration file"),
    "config": ("config", "Check, show or describe the configuration"),
    "start": ("lifecycle", "Start an instance and return when it is ready"),
    "stop": ("lifecycle", "Stop an instance"),
    "status": ("query", "Health of an instance on one screen"),
    "stats": ("shared", "Counters, once or a line a second"),
    "latency": ("shared", "Latency percentiles of every stage"),
    "gaps": ("shared", "Streams that lost data, and how often"),
    "errors": ("shared", "Distinct errors with their counts"),
    "subs": ("query", "Subscriptions and their states"),
    "conns": ("query", "Connections and what they carry"),
    "capacity": ("capacity", "Budgets of connections, addresses and workers: used and left"),
    "plan": ("capacity", "What rebalancing would change, and why"),
    "rebalance": ("moves", "Make the moves that plan proposes, while data flows"),
    "drain": ("moves", "Move everything away from a worker, while data flows"),
    "moves": ("moves", "Jobs and moves in flight"),
    "restart": ("moves", "Stop and start, or replace process by process"),
    "reload": ("changes", "Apply a changed configuration to a living instance"),
    "readers": ("shared", "Attached readers and their lag"),
    "tail": ("tail", "Print records as they arrive"),
    "verify": ("verify", "Replay a recording through decoders and books"),
    "simulate": ("simulate", "Run simulated venues on loopback"),
    "demo": ("demo", "Simulated venues, an instance and a live view in one command"),
}


class Verbs(click.Group):
    """Verbs in the order of VERBS; a module is imported only for the verb that is called. An error is one sentence."""

    def main(self, *args, standalone_mode=True, **extra):
        if not standalone_mode:
            return super().main(*args, standalone_mode=False, **extra)
        try:
            sys.exit(super().main(*args, standalone_mode=False, **extra))
        except click.exceptions.NoArgsIsHelpError as help:
            help.show()
        except click.UsageError as error:
            path = error.ctx.command_path if error.ctx else "feedhandler"
            click.echo(common.printable(f"{path}: {error.format_message().rstrip('.')}; see {path} --help"), err=True)
        except click.ClickException as error:
            click.echo(f"feedhandler: {common.printable(error.format_message())}", err=True)
            sys.exit(error.exit_code)
        except (click.Abort, KeyboardInterrupt):
            click.echo("feedhandler: interrupted", err=True)
            sys.exit(common.FAILED)
        sys.exit(common.USAGE)

    def list_commands(self, ctx):
        return list(VERBS)

    def get_command(self, ctx, name):
        if name not in VERBS:
            return None
        module = importlib.import_module(f"feedhandler.cli.{VERBS[name][0]}")
        return getattr(module, f"cmd_{name}")

    def format_commands(self, ctx, formatter):
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in VERBS.items()])

    def resolve_command(self, ctx, args):
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from difflib import get_close_matches
            near = get_close_matches(args[0], VERBS, n=1)
            if near:
                error.message = error.message.rstrip(".") + f", did you mean {near[0]!r}?"
            raise


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="feedhandler", prog_name="feedhandler")
def main():
    """Crypto market data from WebSocket feeds into lock-free shared-memory rings.

    \b
    feedhandler demo                     everything on this machine, no internet needed
    feedhandler init && feedhandler start -c feedhandler.toml
    feedhandler status -n main
    """
