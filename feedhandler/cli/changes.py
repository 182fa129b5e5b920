"""reload, and what subs add and subs remove share: a living instance is changed."""
import os

import click

from feedhandler.cli import common

TIMEOUT_S = 30.0   # a new venue's instrument list may have to come first


@click.command("reload")
@common.instance_option
@common.json_option
@click.option("-c", "--config", "path", type=click.Path(dir_okay=False), help="Configuration file; without, the one it was started with.")
@click.option("--dry-run", is_flag=True, help="Only say what would change.")
def cmd_reload(name, as_json, path, dry_run):
    """Apply a changed configuration to a living instance. What did not change is not touched.

    A file with a mistake, or one that needs a restart, changes nothing. Exit code 2: the file is wrong.

    \b
    feedhandler reload -n demo --dry-run
    """
    if path:
        _check(path)
    show(ask(name, "reload", {"path": os.path.abspath(path) if path else "", "dry_run": dry_run}), as_json)


def _check(path):
    from feedhandler import config
    try:
        config.load(path)
    except config.ConfigError as error:
        common.fail(f"{error}\nnothing was changed; correct the file and reload again", common.USAGE)
    except OSError as error:
        common.fail(f"{path} cannot be read: {error.strerror}; give the file to apply with -c", common.USAGE)


def names_channel(word):
    from feedhandler.config import Channel, VenueError
    try:
        return bool(Channel.parse(word))
    except VenueError:
        return False


def split(words):
    """{"symbols", "channels"}: the trailing words that name channels are channels."""
    at = len(words)
    while at and names_channel(words[at - 1]):
        at -= 1
    if not 0 < at < len(words):
        common.fail("give symbols, then channels, as in BTC-USDT trade book; a channel is a word like trade, quote or book20@100ms", common.USAGE)
    return {"symbols": list(dict.fromkeys(words[:at])), "channels": list(dict.fromkeys(words[at:]))}


def ask(name, verb, arguments):
    from feedhandler import instance
    from feedhandler.supervisor import client
    try:
        return client.request(name, verb, arguments, TIMEOUT_S)
    except client.NotRunning as error:
        common.fail(str(error), common.NOT_RUNNING if error.manifest is None else common.DEGRADED)
    except (client.Refused, instance.InstanceError) as error:
        common.fail(str(error))


def show(document, as_json):
    def human(document):
        for sign, key in (("+", "added"), ("-", "removed"), (">", "moved")):
            for row in document[key]:
                click.echo(common.printable(f"{sign} {row['venue']} {row['endpoint']} {row['wire']}"))
        for problem in document["problems"]:
            click.echo(common.printable(f"! {problem}"))
        click.echo(f"{len(document['added'])} streams {'added' if document['applied'] else 'would be added'}, {len(document['removed'])} removed, "
                   f"{len(document['moved'])} moved; {len(document['opened'])} connections to open, {len(document['closed'])} to close")
        if document.get("job") is not None:
            click.echo(f"the number of workers becomes {document['workers']} when those that go are empty: feedhandler moves -n {document['name']}")
    common.output(as_json, document, human)
