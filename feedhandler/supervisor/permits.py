"""Who may connect, or send an operation, and when: what workers ask for, granted as the budgets of addresses allow.

The ledger keeps the budgets, for all instances of an address together; this is the queue before it. Workers ask again every
second for what did not come, so nothing here outlives the supervisor.
"""
import asyncio
import time

from feedhandler import control
from feedhandler.supervisor.ledger import Busy
from feedhandler.supervisor.shard import TRANSIT_S

PERMIT_VALID_S = TRANSIT_S   # the windows are that much longer: used at its end, a permit still keeps the venue's; later it is lost
PERMIT_PAUSE_S = 0.05
PROBE_S, PROBE_MAX_S = 0.5, 10.0   # an address that takes no connection is tried ever more rarely, so that its budget is there when it does again
PROBE_FREE = 4               # attempts beyond one a connection before that


class Permits:
    """chief is the Supervisor: its shards, ledger and crew are what this works on."""

    def __init__(self, chief):
        self.chief = chief
        self.queue = {}              # (worker number, venue, endpoint, kind) → how many it waits for, longest waiting first
        self.unanswered = {}         # connect key → [attempts granted since a connection came up there, when the last one was]
        self.attempts = {}           # connection id → connect key of those that are connecting

    def forget(self, number):
        """What a worker that died waited for."""
        self.queue = {want: count for want, count in self.queue.items() if want[0] != number}

    def forget_others(self, sessions):
        """Connections that are no more; sessions: by the ids of those there are."""
        self.attempts = {id: key for id, key in self.attempts.items() if id in sessions}

    def wanted(self, worker, message):
        home = self.chief.shards.homes.get(message.venue)
        if home is None or message.endpoint not in home.profiles or self.key(home, message.endpoint, message.kind) not in self.chief.ledger.budgets:
            self.chief.log("permit_refused", worker=worker.number, venue=message.venue, endpoint=message.endpoint, kind=message.kind)
            return
        want = worker.number, message.venue, message.endpoint, message.kind
        known = self.queue.get(want, 0)
        self.queue[want] = max(known, message.count) if message.again else known + message.count
        self.grant()

    def key(self, home, endpoint, kind):
        return home.operation_key(endpoint) if kind == "operation" else home.connect_key(endpoint)

    def grant(self):
        """Grant in order; who must wait does not hold up those of another address, and who got something waits behind the others."""
        full = set()
        for want, count in list(self.queue.items()):
            number, venue, endpoint, kind = want
            key = self.key(self.chief.shards.homes[venue], endpoint, kind)
            most = min(count, self._room(key)) if kind == "connect" else count
            if key in full or most < 1 or self.chief.ledger.wait_s(key) > 0:
                continue
            try:
                granted = self.chief.ledger.take(key, most)
            except Busy:
                granted = 0
            if granted and kind == "connect":
                self.unanswered[key] = [self.unanswered.get(key, [0])[0] + granted, time.monotonic()]
            if granted:
                del self.queue[want]
                self.chief.crew.workers[number].say(control.Permit(venue, endpoint, granted, time.monotonic_ns() + int(PERMIT_VALID_S * 1e9), kind))
            if granted < count:
                full.add(key)
                self.queue[want] = count - granted

    def _room(self, key):
        """Attempts that make sense at an address: one for each connection and some, then one now and then until one comes up.

        Those on their way may all arrive in this moment: together they are no more than the budget."""
        count, last_s = self.unanswered.get(key, (0, 0.0))
        pending = sum(each == key for each in self.attempts.values())
        return min(self._sensible(key, count, last_s), self.chief.ledger.budgets[key].room(self.chief.ledger.now()) - pending)

    def _sensible(self, key, count, last_s):
        free = PROBE_FREE + sum(self.chief.shards.homes[venue].connect_key(endpoint) == key for venue, endpoint in self.chief.shards.place_of.values())
        if count < free:
            return free - count
        return int(time.monotonic() - last_s >= min(PROBE_MAX_S, PROBE_S * (count - free + 1)))

    async def run(self):
        """Grant what had to wait, as soon as its budget has room."""
        while True:
            await asyncio.sleep(PERMIT_PAUSE_S)
            if self.queue:
                self.grant()

    def look_up(self, session):
        """A connection that came up says that its address takes connections; an attempt counts from its end, however long it took."""
        if session.id not in self.chief.shards.place_of:
            return
        _, before = self.chief.sessions.get(session.id, (0, None))
        venue, endpoint = self.chief.shards.place_of[session.id]
        key = self.chief.shards.homes[venue].connect_key(endpoint)
        if session.state == "CONNECTING":
            self.attempts[session.id] = key
            return
        came_up = session.state == "UP" and (before is None or before.state != "UP" or before.reconnects != session.reconnects)
        if came_up:
            self.unanswered.pop(key, None)
        if self.attempts.pop(session.id, None) or (came_up and before is not None):
            self.chief.ledger.arrived(key)
