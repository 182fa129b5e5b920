"""init and config check, schema, show."""
import json
import os
import pathlib
import sys

import click

from feedhandler.cli import common

CONFIG_DEFAULT = "feedhandler.toml"


def _load(path, as_json=False):
    """The Config of a file; with mistakes, all of them and exit code 2."""
    from feedhandler import config
    try:
        return config.load(path)
    except config.ConfigError as error:
        if as_json:
            common.output(True, {"file": path, "ok": False, "problems": [problem._asdict() for problem in error.problems]}, None)
        else:
            click.echo(common.printable(error), err=True)
            click.echo(f"{len(error.problems)} problem{'s' * (len(error.problems) > 1)}; every setting is described by feedhandler init -", err=True)
        sys.exit(common.USAGE)
    except OSError as error:
        common.fail(f"{path} cannot be read: {error.strerror}; write one with feedhandler init {path}", common.USAGE)


def example():
    """Text of the commented configuration: installed beside the package, or in the folder conf of the sources."""
    package = pathlib.Path(__file__).parents[1]
    for folder in (package / "conf", package.parent / "conf"):
        if (folder / "example.toml").exists():
            return (folder / "example.toml").read_text()
    common.fail("the example configuration is not installed; feedhandler config schema lists every setting")


@click.command("init")
@click.argument("path", default=CONFIG_DEFAULT)
@common.json_option
def cmd_init(path, as_json):
    """Write a commented configuration to PATH (default feedhandler.toml; - prints it). Never overwrites.

    \b
    feedhandler init
    """
    if path == "-":
        click.echo(example(), nl=False)
        return
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        common.fail(f"{path} is there already; give another path, or look at feedhandler init -")
    except OSError as error:
        common.fail(f"{path} cannot be written: {error.strerror}; give another path")
    with open(fd, "w") as file:
        file.write(example())
    common.output(as_json, {"file": path, "result": "written"}, lambda document: click.echo(
        f"wrote {path}; check it with feedhandler config check {path}, run it with feedhandler start -c {path}"))


@click.group("config")
def cmd_config():
    """Check, show or describe the configuration."""


@cmd_config.command("check")
@click.argument("path", default=CONFIG_DEFAULT)
@common.json_option
def config_check(path, as_json):
    """All mistakes of a configuration at once, each with its line. Exit code 0 or 2.

    \b
    feedhandler config check real.toml
    """
    config = _load(path, as_json)
    document = {"file": path, "ok": True, "problems": [], "subscriptions": len(config.subscribe)}
    common.output(as_json, document, lambda document: click.echo(
        f"{path} is well: {len(config.subscribe)} subscriptions, {config.instance.workers} workers; start it with feedhandler start -c {path}"))


def _document(as_json, document):
    """JSON either way: indented for a person, one line for a program."""
    common.output(as_json, document, lambda document: click.echo(json.dumps(document, indent=1)))


@cmd_config.command("schema")
@common.json_option
def config_schema(as_json):
    """JSON schema of the configuration: every setting, default and range.

    \b
    feedhandler config schema
    """
    from feedhandler import config
    _document(as_json, config.schema())


@cmd_config.command("show")
@click.argument("path", default=CONFIG_DEFAULT)
@common.json_option
def config_show(path, as_json):
    """The configuration with every default filled in, as JSON.

    \b
    feedhandler config show real.toml
    """
    from feedhandler import config
    _document(as_json, config.resolved(_load(path, as_json)))
