"""Instances on this machine: names, paths, locks, manifests, and what a crashed run left behind.

Who writes: the supervisor (manifest, lock). Who reads: everyone; a reader imports nothing else of ours.
What blocks: nothing. What survives a crash: the directory; the lock falls with its process, and the next start
either adopts the workers that still live or removes the files of those that do not.
"""
import contextlib
import fcntl
import json
import os
import re
import shutil
import stat
import time

ROOT = "/dev/shm"
PREFIX = "feedhandler-"
ABI = 1
NAME_SIZE_MAX = 40           # keeps /dev/shm/feedhandler-<name>/supervisor.sock below the 108 bytes of a socket address
MANIFEST_SIZE_MAX = 1 << 20  # 256 workers take 30 kB
DIRECTORY_MODE, FILE_MODE = 0o750, 0o640
LOCK_READ_TRIES, LOCK_READ_PAUSE_S = 50, 0.002  # a winner writes its pid within microseconds of taking the lock

MANIFEST, PLAN, LOG, CONTROL = "manifest.json", "plan.json", "supervisor.log", "supervisor.sock"
INSTRUMENTS, STATE, READERS = "instruments", "state", "readers"
OURS = re.compile(r"(manifest\.json|plan\.json)(\.[0-9]+\.new)?|supervisor\.log(\.1)?|supervisor\.sock|launcher\.sock|launcher\.log"
                  r"|instruments|state|readers|worker-[0-9]+\.(ring|counters|sock|log)")
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9_-]{{0,{NAME_SIZE_MAX - 1}}}")


class InstanceError(ValueError):
    """An instance that cannot be used as asked; the text says why and what to do."""


class Running(InstanceError):
    """Another living supervisor holds the instance."""

    def __init__(self, name, pid):
        self.name, self.pid = name, pid
        super().__init__(f"instance {name!r} is already running: supervisor pid {pid or 'unknown'}; see feedhandler status -n {name}, "
                         f"or choose another name with -n")


def check_name(name):
    """name itself, or InstanceError: a name becomes a directory and socket path."""
    if not _NAME.fullmatch(name):
        raise InstanceError(f"instance name {name!r} is not usable: 1 to {NAME_SIZE_MAX} letters, digits, '-' or '_', "
                            f"beginning with a letter or digit, as in main or btc-1")
    return name


def directory(name):
    return f"{ROOT}/{PREFIX}{check_name(name)}"


def lock_path(name):
    return f"{directory(name)}.lock"


def control_path(name):
    return f"{directory(name)}/{CONTROL}"


def worker_socket_path(name, worker):
    return f"{directory(name)}/worker-{worker}.sock"


# -- processes -----------------------------------------------------------------------------------------------

def pid_start(pid=None):
    """Start time of a process in clock ticks since boot: with the pid it names one process for ever. 0: no such process."""
    try:
        with open(f"/proc/{pid or os.getpid()}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()  # the name before it may hold spaces and brackets
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if fields[0] in (b"Z", b"X") else int(fields[19])


def alive(pid, start):
    """Whether the very process that had this pid and start time still runs (a zombie does not)."""
    return pid > 0 and start > 0 and pid_start(pid) == start


# -- the lock ------------------------------------------------------------------------------------------------

class Lock:
    """The supervisor's claim on a name. Held by an open file; the kernel lets go when the process ends."""

    def __init__(self, name, fd):
        self.name, self.fd = name, fd

    @classmethod
    def take(cls, name):
        """The lock, or Running with the winner's pid. Never waits for the holder."""
        path = lock_path(name)
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)
            try:
                _check_ours(os.fstat(fd), path, stat.S_ISREG, "regular file")
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                raise Running(name, holder(name)) from None
            except InstanceError:
                os.close(fd)
                raise
            if _same_file(fd, path):
                os.ftruncate(fd, 0)
                os.pwrite(fd, f"{os.getpid()} {pid_start()}\n".encode(), 0)
                return cls(name, fd)
            os.close(fd)  # the last holder removed the file between our open and our lock: try the new one

    def release(self, remove=True):
        if remove:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(lock_path(self.name))
        os.close(self.fd)


def _same_file(fd, path):
    try:
        found = os.stat(path, follow_symlinks=False)
    except FileNotFoundError:
        return False
    mine = os.fstat(fd)
    return (found.st_dev, found.st_ino) == (mine.st_dev, mine.st_ino)


def holder(name):
    """pid written in the lock file, 0 when there is none. The winner may not have written it yet: look again, briefly."""
    for _ in range(LOCK_READ_TRIES):
        try:
            with open(lock_path(name), "rb") as file:
                fields = file.read(64).split()
        except FileNotFoundError:
            return 0
        if len(fields) == 2 and fields[0].isdigit() and fields[1].isdigit() and alive(int(fields[0]), int(fields[1])):
            return int(fields[0])
        time.sleep(LOCK_READ_PAUSE_S)
    return 0


def locked(name):
    """Whether a living supervisor holds the name."""
    try:
        fd = os.open(lock_path(name), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(fd)


# -- the directory -------------------------------------------------------------------------------------------

def _check_ours(found, path, kind, noun):
    if not kind(found.st_mode):
        raise InstanceError(f"{path} is not a {noun} (mode {stat.filemode(found.st_mode)}): somebody else put it there; "
                            f"look at it and remove it, or choose another name with -n")
    if found.st_uid != os.geteuid():
        raise InstanceError(f"{path} belongs to user id {found.st_uid}, not to you ({os.geteuid()}); choose another name with -n")
    if found.st_mode & 0o022:
        raise InstanceError(f"{path} may be written by others (mode {stat.filemode(found.st_mode)}); "
                            f"look at it and remove it, or choose another name with -n")


def exists(name):
    """Whether the instance has a directory. InstanceError if what has its name is no directory of ours."""
    path = directory(name)
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return False
    _check_ours(found, path, stat.S_ISDIR, "directory")
    return True


def create(name):
    """Make the instance's directory; it must not exist. Answers an open directory descriptor."""
    path = directory(name)
    os.mkdir(path, DIRECTORY_MODE)
    os.chmod(path, DIRECTORY_MODE)  # whatever the umask
    return open_directory(name)


def open_directory(name):
    return os.open(directory(name), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def ring_writers(name):
    """Worker numbers whose ring is locked by a living writer, whatever the manifest says."""
    found = []
    for file in sorted(os.listdir(directory(name))):
        match = re.fullmatch(r"worker-([0-9]+)\.ring", file)
        if not match:
            continue
        fd = os.open(f"{directory(name)}/{file}", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            found.append(int(match[1]))
        finally:
            os.close(fd)
    return found


def remove(name):
    """Remove the files of an instance that no longer runs, ours only, and its directory. Call with the lock held.

    Answers the number of files. InstanceError if a worker still writes or a file is not ours."""
    if not exists(name):
        return 0
    path = directory(name)
    writers = ring_writers(name)
    if writers:
        raise InstanceError(f"{path} is in use: worker {', '.join(map(str, writers))} still writes; run feedhandler stop -n {name}")
    files = os.listdir(path)
    foreign = sorted(file for file in files if not OURS.fullmatch(file))
    if foreign:
        raise InstanceError(f"{path} holds files that are not ours ({', '.join(foreign[:5])}); look at them and remove them, "
                            f"or choose another name with -n")
    for file in files:
        os.unlink(f"{path}/{file}")
    os.rmdir(path)
    return len(files)


def space_free():
    """Free bytes in /dev/shm."""
    return shutil.disk_usage(ROOT).free


# -- the manifest --------------------------------------------------------------------------------------------

def write_json(name, file, document):
    """Replace a JSON file of the instance in one step: a reader sees the old one or the new one, whole."""
    path = f"{directory(name)}/{file}"
    new = f"{path}.{os.getpid()}.new"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(new)
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)
    with open(fd, "w") as out:
        out.write(json.dumps(document, separators=(",", ":")))   # dump() is ten times slower
    os.rename(new, path)


def manifest_write(name, document):
    write_json(name, MANIFEST, _manifest_check(document, name))


def manifest_read(name):
    """The instance's manifest, checked. FileNotFoundError: no such instance; InstanceError: damaged or of another version."""
    path = f"{directory(name)}/{MANIFEST}"
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    with open(fd, "rb") as file:
        text = file.read(MANIFEST_SIZE_MAX + 1)
    if len(text) > MANIFEST_SIZE_MAX:
        raise InstanceError(f"{path} is larger than {MANIFEST_SIZE_MAX} bytes; it is damaged: feedhandler stop -n {name} removes it")
    try:
        document = json.loads(text)
    except ValueError as error:
        raise InstanceError(f"{path} is damaged ({error}); feedhandler stop -n {name} removes it") from None
    return _manifest_check(document, name)


_WORKER = {"worker": int, "pid": int, "pid_start": int}
_FIELDS = {"abi": int, "generation": int, "name": str, "version": str, "created_ns": int, "supervisor": dict, "workers": list, "venues": list}


def _manifest_check(document, name):
    path = f"{directory(name)}/{MANIFEST}"
    problem = _typed(document, _FIELDS) or _typed(document["supervisor"], {"pid": int, "pid_start": int})
    for row in () if problem else document["workers"]:
        problem = problem or _typed(row, _WORKER)
    if problem:
        raise InstanceError(f"{path} is damaged: {problem}; feedhandler stop -n {name} removes it")
    if document["abi"] != ABI:
        raise InstanceError(f"{path} is of ABI version {document['abi']}, this package reads {ABI}: "
                            f"use the feedhandler that started it, version {document['version']}")
    return document


def _typed(document, fields):
    if not isinstance(document, dict):
        return "an object is not one"
    return next((f"{key} is {document.get(key)!r}, expected {kind.__name__}" for key, kind in fields.items()
                 if type(document.get(key)) is not kind), "")


# -- discovery -----------------------------------------------------------------------------------------------

def names():
    """Names of all instances of this machine that have a manifest, running or crashed."""
    found = []
    for file in sorted(os.listdir(ROOT)):
        name = file.removeprefix(PREFIX)
        if file.startswith(PREFIX) and _NAME.fullmatch(name) and os.path.exists(f"{ROOT}/{file}/{MANIFEST}"):
            found.append(name)
    return found


def workers_alive(manifest):
    """The manifest's workers that still run."""
    return [worker for worker in manifest["workers"] if alive(worker["pid"], worker["pid_start"])]


def leftovers(name):
    """What a run left behind, with the lock held: ("none" | "workers" | "stale", manifest or None)."""
    if not exists(name):
        return "none", None
    try:
        manifest = manifest_read(name)
    except FileNotFoundError:
        return "stale", None
    except InstanceError:
        if ring_writers(name):
            raise
        return "stale", None
    return ("workers" if workers_alive(manifest) else "stale"), manifest
