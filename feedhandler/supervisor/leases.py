"""What this instance holds open at its venues' addresses, as leases that all instances of this host see.

Taken before the workers are told to open more, lowered when they have closed. What workers really hold open is read from
their session tables, so that a connection on its way out counts until it is gone.
"""
import os

from feedhandler import instance
from feedhandler.capacity.plan import PlanError
from feedhandler.supervisor.ledger import Busy, Need


class Leases:
    """chief is the Supervisor: its ledger, shards and crew are what this looks at."""

    def __init__(self, chief):
        self.chief = chief
        self.noted = {}          # key → Need, as last written
        self.pids = []
        self.covered = None      # generation of the shards whose needs are held
        self.said = ()           # what was logged last, so that it is logged once

    # -- beside whom we plan -------------------------------------------------------------------------------------------

    def others(self):
        """{(venue, endpoint): (connections, streams, sentences)} that other instances hold now."""
        ledger, found = self.chief.ledger, {}
        ledger.look()
        for home in self.chief.shards.homes.values():
            for endpoint in home.profiles:
                leases = ledger.others(self.chief.name, home.held_key(endpoint))
                if leases:
                    found[home.name, endpoint] = (sum(lease["connections"] for lease in leases.values()), sum(lease["streams"] for lease in leases.values()),
                                                  [_sentence(home.name, endpoint, name, lease) for name, lease in sorted(leases.items())])
        return found

    # -- what we hold --------------------------------------------------------------------------------------------------

    def claim(self, placement):
        """Hold what this placement needs, beside all that is open now. False: another instance took the room meanwhile.

        PlanError: the file cannot be had."""
        try:
            return not self._write(self._needs(placement))
        except Busy as busy:
            raise PlanError([f"{busy}; nothing was changed, try again"]) from None

    def cover(self):
        """Whether what the workers are to be told is held; until it is, they are not told."""
        if self.covered == self.chief.shards.generation:
            return True
        try:
            full = self._write(self._needs())
        except Busy as busy:
            full = {str(busy): {}}
        if not full:
            self.covered = self.chief.shards.generation
        self._log(full)
        return not full

    def adopt(self, living):
        """Take over the leases of a supervisor that died with its living workers: they are open, whatever others hold."""
        self._write(self._needs(), [(row["pid"], row["pid_start"]) for row in living], True)
        self.covered = self.chief.shards.generation

    def settle(self):
        """Write down what changed: processes, and connections that closed. Before the plan nothing is known, so nothing is let go."""
        if not self.chief.planned:
            return
        needs, pids = self._needs(), self._pids()
        if needs != self.noted or pids != self.pids:
            try:
                self._log(self._write(needs))
            except Busy:
                pass             # a second later is soon enough: until then it is held as it was

    def release(self):
        """Everything is closed."""
        try:
            self.chief.ledger.lease(self.chief.name, {}, [])
        except Busy as busy:     # it lapses with our processes
            self.chief.log("lease_not_released", reason=str(busy))

    def document(self):
        """A row an address that has a limit or that others hold too: {venue, endpoint, what, ours, limit, others: {instance: count}}."""
        rows, others = [], self.chief.ledger.others
        for home in self.chief.shards.held():
            for endpoint, typed in home.typed.items():
                key = home.held_key(endpoint)
                need, leases = self.noted.get(key, Need(0, 0)), others(self.chief.name, key)
                for what, ours, most in (("connections", need.connections, typed.connections_limit), ("streams", need.streams, typed.streams_limit)):
                    if most is not None or leases:
                        rows.append({"venue": home.name, "endpoint": endpoint, "what": what, "ours": ours, "limit": most,
                                     "others": {name: lease[what] for name, lease in sorted(leases.items())}})
        return rows

    # -- small things --------------------------------------------------------------------------------------------------

    def _write(self, needs, living=(), held=False):
        """{}: held from now on; else who has the room."""
        pids = self._pids() + list(living)
        full = self.chief.ledger.lease(self.chief.name, needs, pids, held)
        if not full:
            self.noted, self.pids = needs, pids
        return full

    def _pids(self):
        crew = self.chief.crew
        return [(os.getpid(), instance.pid_start())] + [(worker.pid, worker.pid_start) for worker in (crew.workers if crew else ()) if worker.pid]

    def _needs(self, placement=None):
        """{key: Need} of all that is open, told or, with a placement, to be told. A connection that is in several counts once."""
        shards, rows = self.chief.shards, {}
        for worker in self.chief.crew.workers if self.chief.crew else ():
            if worker.state == "UP" and worker.counters is not None:
                rows.update(((worker.number, row["connection"]), (row["venue"], row["endpoint"], row["streams"])) for row in worker.counters.sessions())
        told = [(worker, each) for worker, assign in shards.assigns.items() for each in assign.connections]
        told += [(each.worker, each) for each in (placement or shards.placement).connections]
        for worker, each in told:
            before = rows.get((worker, each.id), ("", "", 0))
            rows[worker, each.id] = each.venue, each.endpoint, max(before[2], len(each.streams))
        counts = {}
        for venue, endpoint, streams in rows.values():
            count = counts.setdefault((venue, endpoint), [0, 0])
            count[0] += 1
            count[1] += streams
        return {home.held_key(endpoint): Need(count[0] + home.http_open(endpoint), count[1], typed.connections_limit, typed.streams_limit)
                for home in shards.homes.values() for endpoint, typed in home.typed.items()
                for count in [counts.get((home.name, endpoint), (0, 0))] if count[0] or home.http_open(endpoint)}

    def _log(self, full):
        """Say once who stands in the way."""
        said = tuple(f"{key}: {', '.join(holders)}" for key, holders in full.items())
        if said and said != self.said:
            self.chief.log("lease_refused", reason="; ".join(said))
        self.said = said


def _sentence(venue, endpoint, name, lease):
    return (f"{venue}/{endpoint}: instance {name} holds {lease['connections']} connections and {lease['streams']} streams at the same address; "
            f"stop it, or subscribe less there")
