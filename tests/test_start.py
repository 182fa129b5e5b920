"""Starting: one of many wins, a machine without room is refused, what a crashed run left is cleaned, what is foreign is not touched."""
import os
import pathlib
import random
import re
import subprocess
import sys

import pytest

import feedhandler
from crash_support import Instance, Simulated, Witness, new_name, until, verb
from feedhandler import instance

STARTS = 50
PRODUCT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    one = Simulated(tmp_path_factory.mktemp("start"), venues=("deribit",), instruments=2, rate=400)
    yield one
    one.close()


# Stress. What: many `feedhandler start` of one name at the same moment, as real processes.
# Why: two supervisors of one instance would write the same files.
# Sizes: 50 starts. A failure means: the lock let two in, or a loser could not say who won.
def test_of_many_starts_at_once_one_wins_and_the_others_name_it(simulated):
    name = new_name()
    path = simulated.write(name, workers=1)
    words = [sys.executable, "-m", "feedhandler", "start", "-c", path]
    racers = [subprocess.Popen(words, env=simulated.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(STARTS)]
    try:
        ended = [(racer.communicate(timeout=90), racer.returncode) for racer in racers]
        winners = [said for said, code in ended if code == 0]
        pid = instance.holder(name)
        assert len(winners) == 1 and pid, [code for _, code in ended]
        assert f"instance {name} is ok" in winners[0][0]
        losers = [said[1] for said, code in ended if code == 1]
        assert len(losers) == STARTS - 1 and all(f"supervisor pid {pid};" in said for said in losers), losers
    finally:
        verb("stop", "-n", name, env=simulated.env)
    assert not os.path.exists(instance.directory(name)) and not os.path.exists(instance.lock_path(name))


SMALL = """
mount -t tmpfs -o size=$2 tmpfs /dev/shm || exit 99
"$0" -m feedhandler start -c "$1" -n $3; code=$?
[ $code = 1 ] || "$0" -m feedhandler stop -n $3
ls -A /dev/shm; exit $code
"""


@pytest.mark.parametrize("size", ["64k", "1m", "1600k"])
def test_too_small_a_shared_memory_is_refused_with_the_size_needed_and_nothing_is_left(simulated, size):
    name = new_name()
    path = simulated.write(name, workers=2)
    done = subprocess.run(["unshare", "-m", "sh", "-c", SMALL, sys.executable, path, size, name], env=simulated.env, capture_output=True, text=True)
    if done.returncode == 99 or "unshare" in done.stderr:
        pytest.skip(f"a private /dev/shm is not permitted here: {done.stderr.strip()}")
    assert done.returncode == 1, done
    free, needed = (int(text.replace(",", "")) for text in re.search(r"/dev/shm has ([0-9,]+) bytes free, this instance needs ([0-9,]+);", done.stderr).groups())
    assert 0 < free < needed and "lower ring.slots" in done.stderr and "mount -o remount,size=" in done.stderr
    assert done.stdout == "", "nothing is left in it"


def test_the_size_asked_for_is_the_size_used(simulated):
    """A /dev/shm of exactly what a refused start says is enough: nothing is allocated beyond it, so nothing can fault later."""
    name = new_name()
    path = simulated.write(name, workers=2)
    refused = subprocess.run(["unshare", "-m", "sh", "-c", SMALL, sys.executable, path, "64k", name], env=simulated.env, capture_output=True, text=True)
    if refused.returncode == 99 or "unshare" in refused.stderr:
        pytest.skip(f"a private /dev/shm is not permitted here: {refused.stderr.strip()}")
    enough = int(re.search(r"this instance needs ([0-9,]+);", refused.stderr).group(1).replace(",", "")) + (1 << 20)
    done = subprocess.run(["unshare", "-m", "sh", "-c", SMALL, sys.executable, path, str(enough + 65536), name], env=simulated.env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"instance {name}: stopped" in done.stdout


# -- what a crashed run leaves ------------------------------------------------------------------------------------

def test_after_everything_was_killed_the_next_start_cleans_up_and_says_so(simulated):
    with Instance(simulated) as one:
        generation = instance.manifest_read(one.name)["generation"]
        one.kill_all()
        said = one.verb("status")
        assert said.returncode == 3 and "the next start removes it" in said.stderr and "feedhandler start" in said.stderr
        done = one.start()
        assert done.returncode == 0 and re.search(r"removed [0-9]+ files of a run that crashed", done.stdout), done.stdout + done.stderr
        assert instance.manifest_read(one.name)["generation"] > generation
        with Witness(one.name, simulated.market()) as witness:
            witness.until(lambda: witness.ring(0).fresh > 10, "data")


def test_after_everything_was_killed_stop_cleans_up_too(simulated):
    with Instance(simulated) as one:
        one.kill_all()
        done = one.verb("stop")
        assert done.returncode == 0 and re.search("ended 0 workers, removed [0-9]+ files", done.stdout)


# -- what is not ours ---------------------------------------------------------------------------------------------

def plant_symlink(path, elsewhere):
    os.symlink(elsewhere, path)


def plant_file(path, elsewhere):
    path.write_text("somebody's")


def plant_foreign(path, elsewhere):
    path.mkdir(0o750)
    (path / "precious").write_text("somebody's")


def plant_open(path, elsewhere):
    path.mkdir()
    path.chmod(0o777)


@pytest.mark.parametrize("plant,says", [(plant_symlink, "is not a directory"), (plant_file, "is not a directory"),
                                        (plant_foreign, "files that are not ours (precious)"), (plant_open, "may be written by others")])
def test_what_is_not_ours_is_neither_used_nor_removed(simulated, tmp_path, plant, says):
    name = new_name()
    path, elsewhere = pathlib.Path(instance.directory(name)), tmp_path / "elsewhere"
    elsewhere.mkdir()
    plant(path, elsewhere)
    found = os.lstat(path)
    try:
        done = verb("start", "-c", simulated.write(name), env=simulated.env)
        assert done.returncode == 1 and says in done.stderr and "choose another name with -n" in done.stderr, done.stderr
        assert done.stderr.count("\n") == 1, "one sentence"
        now = os.lstat(path)
        assert (now.st_ino, now.st_mode, now.st_mtime_ns) == (found.st_ino, found.st_mode, found.st_mtime_ns)
        assert not os.listdir(elsewhere) and not os.path.exists(instance.lock_path(name))
    finally:
        if path.is_symlink() or path.is_file():
            path.unlink()
        else:
            for file in path.iterdir():
                file.unlink()
            path.rmdir()


def test_a_lock_file_that_is_a_symlink_is_refused(simulated, tmp_path):
    name, target = new_name(), tmp_path / "target"
    target.write_text("precious")
    os.symlink(target, instance.lock_path(name))
    try:
        done = verb("start", "-c", simulated.write(name), env=simulated.env)
        assert done.returncode == 1 and instance.lock_path(name) in done.stderr and "Traceback" not in done.stderr, done.stderr
        assert target.read_text() == "precious"
    finally:
        os.unlink(instance.lock_path(name))


DAMAGE = {
    "cut short": lambda data, rng: data[:len(data) // 2],
    "empty": lambda data, rng: b"",
    "text": lambda data, rng: b"this is a note\n" * 500,
    "noise": lambda data, rng: rng.randbytes(len(data)),
    "another layout": lambda data, rng: data[:16] + bytes(8) + data[24:],
}


@pytest.mark.parametrize("file", ["worker-0.ring", "state", "instruments"])
def test_a_damaged_file_given_to_a_reader_is_one_clear_sentence(simulated, tmp_path, file):
    rng = random.Random(5)
    with Instance(simulated) as one:
        for number, (kind, damage) in enumerate(DAMAGE.items()):
            folder = tmp_path / f"{file}-{number}"
            folder.mkdir()
            for name in ("worker-0.ring", "state", "instruments", "readers"):
                (folder / name).write_bytes(pathlib.Path(one.directory, name).read_bytes())
            with feedhandler.reader.attach("copy", directory=str(folder)):
                pass
            (folder / file).write_bytes(damage((folder / file).read_bytes(), rng))
            with pytest.raises(feedhandler.FeedError) as error:
                feedhandler.reader.attach("copy", directory=str(folder))
            said = str(error.value)
            assert str(folder / file) in said and "feedhandler status" in said and "\n" not in said, (kind, said)
