"""Names, the lock, the manifest, and what a crashed run leaves behind."""
import fcntl
import itertools
import json
import os
import subprocess
import sys

import pytest

from feedhandler import instance

NUMBER = itertools.count()


@pytest.fixture
def name():
    name = f"test-{os.getpid()}-{next(NUMBER)}"
    yield name
    path = instance.directory(name)
    if os.path.islink(path) or os.path.isfile(path):
        os.unlink(path)
    elif os.path.isdir(path):
        for file in os.listdir(path):
            os.unlink(f"{path}/{file}")
        os.rmdir(path)
    if os.path.lexists(instance.lock_path(name)):
        os.unlink(instance.lock_path(name))


def manifest(name, workers=()):
    return {"abi": instance.ABI, "generation": 1, "name": name, "version": "0", "created_ns": 1,
            "supervisor": {"pid": os.getpid(), "pid_start": instance.pid_start()}, "workers": list(workers), "venues": []}


@pytest.mark.parametrize("good", ["a", "main", "Demo-1", "9_x", "x" * 40])
def test_usable_names_are_taken_as_they_are(good):
    assert instance.check_name(good) == good


@pytest.mark.parametrize("bad", ["", "-a", "_a", "a b", "a/b", "../x", "a.b", "x" * 41, "ü", "a\n"])
def test_unusable_names_are_refused_with_an_example(bad):
    with pytest.raises(instance.InstanceError, match="as in main"):
        instance.directory(bad)


def test_start_time_tells_a_process_from_a_later_one_with_its_pid():
    start = instance.pid_start()
    assert start > 0 and instance.alive(os.getpid(), start)
    assert not instance.alive(os.getpid(), start + 1)
    assert not instance.alive(0, start)
    process = subprocess.Popen(["sleep", "60"])
    start = instance.pid_start(process.pid)
    assert instance.alive(process.pid, start)
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not instance.alive(process.pid, start), "a zombie runs no more"
    process.wait()
    assert instance.pid_start(process.pid) == 0


RACE = """
import sys
from feedhandler import instance
sys.stdin.readline()
try:
    lock = instance.Lock.take(sys.argv[1])
    print("won", flush=True)
    sys.stdin.readline()
except instance.Running as error:
    print("lost", error.pid, flush=True)
"""


def test_exactly_one_of_fifty_starts_at_once_wins_and_the_losers_name_it(name):
    racers = [subprocess.Popen([sys.executable, "-c", RACE, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
              for _ in range(50)]
    for racer in racers:
        racer.stdin.write("go\n")
        racer.stdin.flush()
    said = [racer.stdout.readline().split() for racer in racers]
    winners = [racer for racer, words in zip(racers, said) if words == ["won"]]
    for racer in racers:
        racer.communicate()
    assert len(winners) == 1
    assert [words for words in said if words != ["won"]] == [["lost", str(winners[0].pid)]] * 49


def test_a_released_lock_is_gone_and_can_be_taken_again(name):
    lock = instance.Lock.take(name)
    assert instance.locked(name) and instance.holder(name) == os.getpid()
    with pytest.raises(instance.Running, match=f"pid {os.getpid()}"):
        instance.Lock.take(name)
    lock.release()
    assert not os.path.exists(instance.lock_path(name)) and not instance.locked(name)
    instance.Lock.take(name).release()


def test_a_lock_file_that_is_a_link_is_refused(name, tmp_path):
    os.symlink(tmp_path / "target", instance.lock_path(name))
    with pytest.raises(OSError):
        instance.Lock.take(name)
    assert not (tmp_path / "target").exists()


def test_a_lock_file_others_may_write_is_refused(name):
    open(instance.lock_path(name), "w").close()
    os.chmod(instance.lock_path(name), 0o666)
    with pytest.raises(instance.InstanceError, match="may be written by others"):
        instance.Lock.take(name)


def test_directory_and_manifest_have_the_promised_modes(name):
    os.close(instance.create(name))
    instance.manifest_write(name, manifest(name))
    path = instance.directory(name)
    assert os.stat(path).st_mode & 0o777 == 0o750
    assert os.stat(f"{path}/manifest.json").st_mode & 0o777 == 0o640
    assert os.listdir(path) == ["manifest.json"]
    assert instance.manifest_read(name) == manifest(name)
    assert name in instance.names()


def test_a_directory_that_is_a_link_a_file_or_open_to_others_is_refused(name, tmp_path):
    path = instance.directory(name)
    os.symlink(tmp_path, path)
    with pytest.raises(instance.InstanceError, match="not a directory"):
        instance.exists(name)
    os.unlink(path)
    open(path, "w").close()
    with pytest.raises(instance.InstanceError, match="not a directory"):
        instance.leftovers(name)
    os.unlink(path)
    os.mkdir(path)
    os.chmod(path, 0o777)
    with pytest.raises(instance.InstanceError, match="written by others"):
        instance.exists(name)
    os.chmod(path, 0o750)
    assert instance.exists(name)


def test_every_truncation_of_a_manifest_is_a_clear_error(name):
    os.close(instance.create(name))
    whole = json.dumps(manifest(name, [{"worker": 0, "pid": 5, "pid_start": 6}]), separators=(",", ":"))
    path = f"{instance.directory(name)}/manifest.json"
    for size in range(len(whole)):
        with open(path, "w") as file:
            file.write(whole[:size])
        with pytest.raises(instance.InstanceError, match="is damaged"):
            instance.manifest_read(name)
    with open(path, "w") as file:
        file.write(whole)
    assert instance.manifest_read(name)["workers"][0]["pid"] == 5


@pytest.mark.parametrize("key,value", [("abi", 2), ("abi", "1"), ("workers", {}), ("workers", [{"worker": 0}]), ("workers", [3]),
                                       ("supervisor", {"pid": 1}), ("generation", True), ("name", None)])
def test_a_manifest_with_one_wrong_field_is_refused(name, key, value):
    os.close(instance.create(name))
    document = manifest(name)
    document[key] = value
    with open(f"{instance.directory(name)}/manifest.json", "w") as file:
        json.dump(document, file)
    with pytest.raises(instance.InstanceError):
        instance.manifest_read(name)


def test_a_crashed_run_is_stale_and_is_removed_whole(name):
    os.close(instance.create(name))
    instance.manifest_write(name, manifest(name, [{"worker": 0, "pid": os.getpid(), "pid_start": 1}]))
    for file in ("worker-0.ring", "state", "supervisor.log.1"):
        open(f"{instance.directory(name)}/{file}", "w").close()
    assert instance.leftovers(name)[0] == "stale"
    assert instance.remove(name) == 4
    assert instance.leftovers(name) == ("none", None)


def test_living_workers_are_left_to_be_adopted(name):
    os.close(instance.create(name))
    instance.manifest_write(name, manifest(name, [{"worker": 0, "pid": os.getpid(), "pid_start": instance.pid_start()}]))
    assert instance.leftovers(name)[0] == "workers"


def test_a_ring_with_a_living_writer_is_never_removed_whatever_the_manifest_says(name):
    os.close(instance.create(name))
    with open(f"{instance.directory(name)}/worker-3.ring", "w") as ring:
        fcntl.flock(ring, fcntl.LOCK_EX)
        with pytest.raises(instance.InstanceError, match="worker 3 still writes"):
            instance.remove(name)
    assert instance.remove(name) == 1


def test_a_file_that_is_not_ours_stops_the_removal_before_it_begins(name):
    os.close(instance.create(name))
    for file in ("state", "thesis.txt"):
        open(f"{instance.directory(name)}/{file}", "w").close()
    with pytest.raises(instance.InstanceError, match="thesis.txt"):
        instance.remove(name)
    assert sorted(os.listdir(instance.directory(name))) == ["state", "thesis.txt"]
