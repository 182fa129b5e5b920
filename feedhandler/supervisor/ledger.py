"""Budgets of this address, kept in a file: all instances of this user share them, and a restart forgets nothing.

Who writes: every supervisor, under a lock held for about a millisecond. Who reads: the same. Times in the file are of
CLOCK_BOOTTIME, which runs through suspend and never jumps; after a reboot they are shifted by the wall clock.
The file is $XDG_STATE_HOME/feedhandler/budgets.json (default ~/.local/state), mode 0600.
"""
import contextlib
import fcntl
import json
import os
import time

from feedhandler.capacity.budget import Budget

LOCK_TRIES, LOCK_PAUSE_S = 40, 0.0005
KEY_MAX = 1000             # addresses remembered; the oldest go first
FORGET_NS = 86_400 * 10**9  # the longest documented window is a day


def default_path():
    base = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return os.path.join(base, "feedhandler", "budgets.json")


def boot_id():
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


class Busy(Exception):
    """Another instance holds the file for longer than it should; nothing was granted."""


class Ledger:
    """now() is nanoseconds of CLOCK_BOOTTIME; on_problem(text) hears of a damaged file."""

    def __init__(self, path, on_problem, now=lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME)):
        self.path, self.on_problem, self.now = path, on_problem, now
        self.boot_id = boot_id()
        self.windows = {}      # key → windows
        self.budgets = {}      # key → Budget, as of the last look
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)

    def open(self, key, windows):
        """Budget `key` has these windows, beside those it was given before."""
        known = self.windows.setdefault(key, [])
        known += [window for window in windows if window not in known]
        with self._locked():
            pass

    def take(self, key, want, least=1):
        """Spend up to `want`; how much was granted."""
        with self._locked():
            return self.budgets[key].take(self.now(), want, least)

    def ban(self, key, for_s, reason):
        with self._locked():
            self.budgets[key].ban(self.now() + int(for_s * 1e9), reason)

    def wait_s(self, key, amount=1):
        """Seconds until take() of this amount can succeed, as far as this process knows."""
        now = self.now()
        return (self.budgets[key].ready_ns(now, amount) - now) / 1e9

    def document(self):
        """What `status` shows: spent, allowed, and bans with their end in UTC."""
        now, wall = self.now(), time.time_ns()
        rows = []
        for key, budget in sorted(self.budgets.items()):
            used, allowed = budget.used(now)
            row = {"budget": key, "used": int(used), "allowed": int(allowed)}
            if budget.banned_ns > now:
                row.update(banned_until_ns=wall + budget.banned_ns - now, reason=budget.reason)
            rows.append(row)
        return rows

    @contextlib.contextmanager
    def _locked(self):
        """The budgets as all instances left them; written back at the end."""
        fd = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            for _ in range(LOCK_TRIES):
                try:
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    time.sleep(LOCK_PAUSE_S)
            else:
                raise Busy(f"{self.path} is locked by another instance")
            document = self._read()
            for key, windows in self.windows.items():
                self.budgets[key] = Budget(windows)
                if key in document:
                    self.budgets[key].load(document[key], self.now())
            yield
            self._write(document)
        finally:
            os.close(fd)

    def _read(self):
        try:
            with open(self.path, "rb") as file:
                document = json.load(file)
            shift = 0
            if document["boot_id"] != self.boot_id:  # another boot: what was `age` ago by the wall clock is so now
                shift = self.now() - document["boot_ns"] - max(0, time.time_ns() - document["wall_ns"])
            return {key: _shifted(saved, shift) for key, saved in document["budgets"].items()}
        except FileNotFoundError:
            return {}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self.on_problem(f"{self.path} is damaged ({error}); budgets begin anew")
            return {}

    def _write(self, document):
        now = self.now()
        document.update((key, budget.dump()) for key, budget in self.budgets.items())
        kept = sorted(((key, saved) for key, saved in document.items() if _last(saved) + FORGET_NS > now),
                      key=lambda item: _last(item[1]))[-KEY_MAX:]
        new = f"{self.path}.{os.getpid()}.new"
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "w") as file:
            json.dump({"boot_id": self.boot_id, "boot_ns": now, "wall_ns": time.time_ns(), "budgets": dict(kept)}, file)
        os.rename(new, self.path)


def _shifted(saved, shift):
    return {"parts": [[[at + shift, amount] for at, amount in part] for part in saved["parts"]],
            "banned_ns": saved["banned_ns"] and saved["banned_ns"] + shift, "reason": str(saved["reason"])}


def _last(saved):
    return max([saved["banned_ns"]] + [at for part in saved["parts"] for at, _ in part])
