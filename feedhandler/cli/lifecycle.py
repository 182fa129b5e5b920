"""start and stop."""
import json
import os
import signal
import subprocess
import sys
import tempfile
import time

import click
from click.core import ParameterSource

from feedhandler.cli import common

CONFIG_DEFAULT = "feedhandler.toml"
STOP_TIMEOUT_S = 10.0
LOOK_PERIOD_S = 0.02


@click.command("start")
@common.instance_option
@common.json_option
@click.option("-c", "--config", "path", type=click.Path(dir_okay=False), default=CONFIG_DEFAULT, show_default=True, help="Configuration file.")
@click.option("--foreground", is_flag=True, help="Stay, log to stderr, stop at Ctrl-C.")
@click.pass_context
def cmd_start(ctx, name, as_json, path, foreground):
    """Start an instance and return when it is ready: every stream has data or a name for why not.

    The name is -n, else the configuration's instance.name. After a supervisor died, start adopts its living workers.
    Exit code 0: all well; 4: running, but something is missing, and it says what; 1 and 2: not started.

    \b
    feedhandler start -c real.toml
    feedhandler start -c real.toml --foreground
    """
    given = ctx.get_parameter_source("name") != ParameterSource.DEFAULT or "FEEDHANDLER_NAME" in os.environ
    name = name if given else ""
    if foreground:
        from feedhandler.supervisor import daemon
        said = []

        def report(document):
            if not said:
                said.append(document)
                _show(document, as_json)
        code = daemon.run(path, name, report, foreground=True)
        sys.exit(code)
    document = _spawn(path, name)
    _show(document, as_json)
    sys.exit(document["code"])


def _spawn(path, name):
    """Run the daemon in a session of its own and wait for its one report."""
    read_fd, write_fd = os.pipe()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen([sys.executable, "-m", "feedhandler.supervisor", os.path.abspath(path), name, str(write_fd)],
                                   stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors, pass_fds=(write_fd,),
                                   start_new_session=True)
        os.close(write_fd)
        try:
            with open(read_fd) as pipe:
                line = pipe.readline()
        except KeyboardInterrupt:
            process.send_signal(signal.SIGTERM)
            process.wait()
            common.fail("start was interrupted; the instance was stopped again")
        if line:
            return json.loads(line)
        code = process.wait()
        errors.seek(0)
        return {"code": common.FAILED, "status": None, "text": f"the supervisor ended with code {code} before it was ready: "
                                                               f"{errors.read().strip()[-1500:] or 'it said nothing'}"}


def _show(document, as_json):
    if as_json:
        common.output(True, document, None)
        return
    status = document["status"]
    if status is None:
        click.echo(common.printable(document["text"]), err=True)
        return
    if document["text"]:
        click.echo(common.printable(document["text"]))
    streams = status["streams"]
    click.echo(f"instance {status['name']} is {status['state']} after {status['uptime_s']:.1f} s: {len(status['workers'])} workers, "
               f"{status['connections']['up']} of {status['connections']['planned']} connections up, {streams.get('live', 0)} of {streams['total']} streams live")
    for venue in status["venues"]:
        first = "no data yet" if venue["first_data_s"] is None else f"first data after {venue['first_data_s']:.2f} s"
        click.echo(common.printable(f"  {venue['venue']}: {venue['instruments']} instruments, {venue['live']} of {venue['streams']} streams live, {first}"))
    for reason in status["reasons"]:
        click.echo(common.printable(f"  {reason}"), err=True)
    if status["reasons"]:
        click.echo(f"look at feedhandler status -n {status['name']} and feedhandler subs -n {status['name']}", err=True)


@click.command("stop")
@common.instance_option
@common.json_option
def cmd_stop(name, as_json):
    """Stop an instance: connections are closed properly, readers are told, files removed. Also after a crash.

    \b
    feedhandler stop -n demo
    """
    how = stop(name)
    common.output(as_json, {"name": name, "result": how}, lambda document: click.echo(f"instance {name}: {how}"))


def stop(name):
    """Stop it, and say how."""
    from feedhandler import instance
    from feedhandler.supervisor import client
    try:
        pid = client.request(name, "stop")["pid"]
        how = "stopped"
        _await_end(name, pid)
    except client.NotRunning as error:
        if not instance.exists(name):
            common.fail(str(error), common.NOT_RUNNING)
        how = _stop_leftovers(name)
    except (client.Refused, instance.InstanceError) as error:
        common.fail(str(error))
    return how


def _await_end(name, pid):
    from feedhandler import instance
    start, deadline = instance.pid_start(pid), time.monotonic() + STOP_TIMEOUT_S
    while instance.alive(pid, start) and instance.locked(name):
        if time.monotonic() > deadline:
            common.fail(f"the supervisor of {name} (pid {pid}) did not end within {STOP_TIMEOUT_S:g} s; "
                        f"see {instance.directory(name)}/{instance.LOG}, or end it with kill {pid}")
        time.sleep(LOOK_PERIOD_S)


def _stop_leftovers(name):
    """Without a supervisor: end its workers, then remove the files, under the lock."""
    from feedhandler import instance
    try:
        lock = instance.Lock.take(name)
    except instance.InstanceError as error:
        common.fail(str(error))
    try:
        kind, manifest = instance.leftovers(name)
        living = instance.workers_alive(manifest) if manifest else []
        for number in (signal.SIGTERM, signal.SIGKILL):
            deadline = time.monotonic() + STOP_TIMEOUT_S / 2
            for worker in living:
                if instance.alive(worker["pid"], worker["pid_start"]):
                    os.kill(worker["pid"], number)
            while any(instance.alive(worker["pid"], worker["pid_start"]) for worker in living) and time.monotonic() < deadline:
                time.sleep(LOOK_PERIOD_S)
        count = instance.remove(name)
    except instance.InstanceError as error:
        common.fail(str(error))
    finally:
        lock.release()
    return f"its supervisor was dead; ended {len(living)} workers, removed {count} files"
