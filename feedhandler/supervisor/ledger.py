"""Budgets of this address, kept in a file: all instances of this user share them, and a restart forgets nothing.

Two kinds. What is *spent* (attempts, operations, REST weight) is granted from rolling windows and is gone. What is *held*
(connections, streams) is leased: a lease names its instance and processes, and lapses when none of them lives any more.

Who writes: every supervisor, under a lock held for about a millisecond. Who reads: the same. Times in the file are of
CLOCK_BOOTTIME, which runs through suspend and never jumps; after a reboot they are shifted by the wall clock, and no
lease is left. A grant is in the file before it is used: a crash in between costs the grant, never a limit.
The file is $XDG_STATE_HOME/feedhandler/budgets.json (default ~/.local/state), mode 0600.
"""
import contextlib
import fcntl
import json
import os
import time
import typing

from feedhandler import instance
from feedhandler.capacity.budget import Budget, Credits

LOCK_TRIES, LOCK_PAUSE_S = 40, 0.0005
LOCK_TRIES_START = 2000    # at a start, and for a lease: nothing else waits for these
KEY_MAX = 1000             # addresses remembered; the oldest go first
UNSAID_MAX = 1000          # bans kept while the file is locked
FORGET_NS = 86_400 * 10**9  # the longest documented window is a day


def default_path():
    base = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return os.path.join(base, "feedhandler", "budgets.json")


def boot_id():
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


class Busy(Exception):
    """Another instance holds the file for longer than it should; nothing was granted."""


class Need(typing.NamedTuple):
    """What an instance holds at an address, and what all together may; None: no limit."""
    connections: int
    streams: int
    connections_max: int | None = None
    streams_max: int | None = None


class Ledger:
    """now() is nanoseconds of CLOCK_BOOTTIME; on_problem(text) hears of a damaged file."""

    def __init__(self, path, on_problem, now=lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME)):
        self.path, self.on_problem, self.now = path, on_problem, now
        self.boot_id = boot_id()
        self.shapes = {}       # key → (windows, credits)
        self.budgets = {}      # key → Budget, as of the last look
        self.leases = {}       # key → {instance: {connections, streams, pids}}, as of the last look
        self.unsaid = []       # bans the file does not know yet: functions of the budgets
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)

    # -- what is spent -------------------------------------------------------------------------------------------------

    def open(self, key, windows, credits=()):
        """Budget `key` has these windows, beside those it was given before. credits: (pool, refill_per_s), or none."""
        known, old = self.shapes.get(key, ((), ()))
        self.shapes[key] = (*known, *(window for window in windows if window not in known)), credits or old
        with self._locked(LOCK_TRIES_START):
            pass

    def take(self, key, want, least=1):
        """Spend up to `want`; how much was granted."""
        with self._locked():
            return self.budgets[key].take(self.now(), want, least)

    def arrived(self, key):
        """An attempt that was granted earlier has ended: the venue counts it at the latest from now on. Busy is no matter."""
        with contextlib.suppress(Busy), self._locked():
            self.budgets[key].renew(self.now())

    def ban(self, key, for_s, reason):
        """Nothing is spent for so long; reason is shown until then."""
        until_ns = self.now() + int(for_s * 1e9)
        self._say(lambda: self.budgets[key].ban(until_ns, reason))

    def punish(self, key, first_s, reason):
        """A ban whose end nobody named: first_s, doubled each time it comes again."""
        now = self.now()
        self._say(lambda: self.budgets[key].punish(now, int(first_s * 1e9), reason))

    def _say(self, ban):
        """Have it take effect here at once, and for all as soon as the file can be had."""
        ban()
        self.unsaid = [*self.unsaid, ban][-UNSAID_MAX:]
        with contextlib.suppress(Busy), self._locked():
            pass

    def wait_s(self, key, amount=1):
        """Seconds until take() of this amount can succeed, as far as this process knows."""
        now = self.now()
        return (self.budgets[key].ready_ns(now, amount) - now) / 1e9

    def banned(self, key):
        """(seconds left, reason), or None."""
        budget, now = self.budgets[key], self.now()
        return ((budget.banned_ns - now) / 1e9, budget.reason) if budget.banned_ns > now else None

    def document(self):
        """What `status` shows: spent, allowed, and bans with their end in UTC and the seconds left."""
        now, wall = self.now(), time.time_ns()
        rows = []
        for key, budget in sorted(self.budgets.items()):
            used, allowed = budget.used(now)
            row = {"budget": key, "used": int(used), "allowed": int(allowed)}
            if budget.banned_ns > now:
                row.update(banned_until_ns=wall + budget.banned_ns - now, banned_s=round((budget.banned_ns - now) / 1e9, 1), reason=budget.reason)
            rows.append(row)
        return rows

    # -- what is held --------------------------------------------------------------------------------------------------

    def lease(self, name, needs, pids, held=False):
        """Hold exactly `needs` {key: Need} for instance `name`, whose processes are pids [(pid, start)]: all of it, or nothing changes.

        held: it is open already, as after an adoption, so it is written down whatever it is. Answers {key: {instance: lease}}
        of the addresses where others leave too little room; {}: done."""
        with self._locked(LOCK_TRIES_START):
            for key in list(self.leases):
                self.leases[key] = {holder: lease for holder, lease in self.leases[key].items()
                                    if holder == name or any(instance.alive(*pid) for pid in lease["pids"])}
            full = {} if held else {key: self.others(name, key) for key, need in needs.items() if not self._fits(name, key, need)}
            if full:
                return full
            for key in {*self.leases, *needs}:
                holders = self.leases.setdefault(key, {})
                holders.pop(name, None)
                if key in needs:
                    holders[name] = {"connections": needs[key].connections, "streams": needs[key].streams, "pids": [list(pid) for pid in pids]}
                if not holders:
                    del self.leases[key]
        return {}

    def _fits(self, name, key, need):
        """Whether it may be held beside the others. What is held already may stay, and may become less, in any case."""
        mine = self.leases.get(key, {}).get(name, {"connections": 0, "streams": 0})
        others = self.others(name, key).values()
        return all(most is None or wanted <= mine[what] or wanted + sum(lease[what] for lease in others) <= most
                   for what, wanted, most in (("connections", need.connections, need.connections_max), ("streams", need.streams, need.streams_max)))

    def others(self, name, key):
        """{instance: lease} of the others at an address, as of the last look."""
        return {holder: lease for holder, lease in self.leases.get(key, {}).items() if holder != name}

    def look(self):
        """See what the others hold now; who died holds nothing. Writes nothing."""
        self.leases = {key: {name: lease for name, lease in holders.items() if any(instance.alive(*pid) for pid in lease["pids"])}
                       for key, holders in self._read()["leases"].items()}

    # -- the file ------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _locked(self, tries=LOCK_TRIES):
        """The budgets and leases as all instances left them; written back at the end."""
        fd = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            self._lock(fd, tries)
            document = self._read()
            self.leases = document["leases"]
            for key, (windows, credits) in self.shapes.items():
                self.budgets[key] = Budget(windows, Credits(*credits) if credits else None)
                if key in document["budgets"]:
                    self.budgets[key].load(document["budgets"][key], self.now())
            for ban in self.unsaid:
                ban()
            yield
            self._write(document["budgets"])
            self.unsaid = []
        finally:
            os.close(fd)

    def _lock(self, fd, tries):
        for _ in range(tries):
            try:
                return fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(LOCK_PAUSE_S)
        raise Busy(f"{self.path} is locked by another instance")

    def _read(self):
        try:
            with open(self.path, "rb") as file:
                document = json.load(file)
            shift, leases = 0, document.get("leases", {})
            if document["boot_id"] != self.boot_id:  # another boot: what was `age` ago by the wall clock is so now
                shift = self.now() - document["boot_ns"] - max(0, time.time_ns() - document["wall_ns"])
                leases = {}
            return {"budgets": {key: _shifted(saved, shift) for key, saved in document["budgets"].items()},
                    "leases": {key: {name: _lease(lease) for name, lease in holders.items()} for key, holders in leases.items()}}
        except FileNotFoundError:
            return {"budgets": {}, "leases": {}}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            self.on_problem(f"{self.path} is damaged ({error}); budgets begin anew")
            return {"budgets": {}, "leases": {}}

    def _write(self, budgets):
        now = self.now()
        budgets.update((key, budget.dump()) for key, budget in self.budgets.items())
        kept = sorted(((key, saved) for key, saved in budgets.items() if _last(saved) + FORGET_NS > now),
                      key=lambda item: _last(item[1]))[-KEY_MAX:]
        new = f"{self.path}.{os.getpid()}.new"
        with open(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600), "w") as file:
            json.dump({"boot_id": self.boot_id, "boot_ns": now, "wall_ns": time.time_ns(), "budgets": dict(kept), "leases": self.leases}, file)
        os.rename(new, self.path)


def _shifted(saved, shift):
    return {"parts": [[[at + shift, amount] for at, amount in part] for part in saved["parts"]],
            "banned_ns": saved["banned_ns"] and saved["banned_ns"] + shift, "reason": str(saved["reason"]), "punished": int(saved.get("punished", 0))}


def _lease(lease):
    return {"connections": int(lease["connections"]), "streams": int(lease["streams"]), "pids": [[int(pid), int(start)] for pid, start in lease["pids"]]}


def _last(saved):
    return max([saved["banned_ns"]] + [at for part in saved["parts"] for at, _ in part])
