"""One worker's streams of one endpoint and line, on its connections. Pure; a part of one attempt of a plan.

In turn: what fits where it is stays; heavy streams are set apart; connections above the target of their learned limit are
split; what is new is dealt, longest first, to the least loaded connection that takes it. Connections that no hard limit
asks for are opened only while the address has some to spare; `spare` of the attempt is shared by all its packs.
"""
import heapq
import operator

from feedhandler.capacity.limits import MILLI, Fill, rate_limit

HEAVIEST = operator.attrgetter("rate", "cpu", "key")   # sorts the heaviest last
FRESH_PERCENT = 90   # new streams fill a connection to this share of the target: it grows before it must be split


class Pack:
    """One worker's streams of one endpoint and line, on their connections."""

    def __init__(self, attempt, worker, place, items, before, mine):
        self.attempt, self.worker, self.place, self.items = attempt, worker, place, items
        self.rules = attempt.rules[place[:2]]
        self.settings = attempt.settings
        self.address = attempt.places[place]
        self.target = self.target_of(0)
        self.fills, self.waiting, self.apart = {}, [], 0   # apart: connections of one heavy stream each
        self.keep(before, mine)
        self.least = self.least_connections(items)         # that the other streams need
        self.claimed = max(self.least, len(self.fills))    # connections of the address counted as ours
        self.heavies, self.parted = self.heavy(), None     # keys to set apart, and those that are

    def target_of(self, id):
        """Rate below which a connection of that id is to stay; 0: a new one."""
        return rate_limit(self.rules.profile, self.settings, id) * self.settings.target_percent // 100

    def keep(self, before, mine):
        """What fits where it is stays there. before: key → connection; mine: ids of those of this worker and place."""
        if not mine:
            self.waiting = self.items
            return
        for item in self.items:
            old = before.get(item.key)
            if old is None or old.id not in mine:
                self.waiting.append(item)
                continue
            fill = self.fills.get(old.id)
            if fill is None:
                fill = self.fills[old.id] = Fill(old.id, self.worker, self.place, self.rules, self.target_of(old.id))
            if fill.takes(item):
                fill.add(item)
            else:
                self.waiting.append(item)
                self.attempt.why[item.key] = f"connection {old.id} {fill.refusal(item)}"
        self.fills = {id: fill for id, fill in self.fills.items() if fill.items}

    def least_connections(self, items):
        """Connections that hard limits ask for at least."""
        rules, least = self.rules, 1 if items else 0
        if rules.fill is not None:
            total = len(items) if not rules.weights else sum(item.weight for item in items)
            least = max(least, int(-(-total // rules.fill)))
        if rules.chars is not None:
            least = max(least, -(-sum(item.chars for item in items) // rules.chars))
        for kind, most in enumerate(rules.most):
            least = max(least, -(-sum(kind in item.kinds for item in items) // most))
        return least

    def part(self):
        """Set the heavy streams apart that are not yet, as far as the address may open connections, and claim for the others."""
        if self.parted is None or len(self.parted) < len(self.heavies):
            self.parted = set(self.heavies)
            self.set_apart(self.parted)
            if self.apart:
                self.least = self.least_connections([item for item in self.items if item.key not in self.parted])
                self.claim()

    def pack(self):
        """All connections, filled."""
        heavy = self.parted
        self.split()
        total = sum([item.rate for item in self.items if item.key not in heavy])
        comfortable = -(-total * 100 // (self.target * FRESH_PERCENT)) if self.target else 0
        waiting = [item for item in self.waiting if item.key not in heavy]
        while waiting and self.shared < max(self.least, comfortable) and self.may_open():
            self.open()
        waiting.sort(key=HEAVIEST, reverse=True)
        self.deal(waiting)
        found = [fill for fill in self.fills.values() if fill.items]
        if waiting and any(fill.rate > fill.target and len(fill.items) > 1 for fill in found):
            self.attempt.unsettled = True
        return found

    @property
    def shared(self):
        return len(self.fills) - self.apart

    def claim(self):
        """Count what we hold of the address's connections anew."""
        claimed = self.apart + max(self.least, self.shared)
        self.attempt.spare[self.address] -= claimed - self.claimed
        self.claimed = claimed

    def may_open(self, apart=False):
        """Whether one more connection may be opened: hard limits ask for it, or the address has one to spare."""
        if (not apart and self.shared < self.least) or self.attempt.spare[self.address] > 0:
            return True
        self.attempt.short.add(self.address)
        return False

    def open(self, apart=False):
        fill = Fill(self.attempt.next_id, self.worker, self.place, self.rules, self.target)
        self.attempt.next_id += 1
        self.fills[fill.id] = fill
        self.mark(fill, apart)
        return fill

    def mark(self, fill, apart):
        self.apart += apart - fill.apart
        fill.apart = apart
        self.claim()

    def heavy(self):
        """Keys of the streams to keep apart: measured, and many times the mean of all lighter ones of this worker's endpoint."""
        floor, factor, found, others = self.settings.heavy_messages_per_s * MILLI, self.settings.heavy_factor, set(), len(self.items)
        rest = sum([item.rate for item in self.items])
        top = max([item.rate for item in self.items])
        if others < 2 or top * 2 < floor or top * 2 * (others - 1) < factor * (rest - top):
            return found
        ranked = sorted((item for item in self.items if item.known), key=HEAVIEST, reverse=True)
        for item in ranked:
            if others < 2 or item.rate < floor or item.rate * (others - 1) < factor * (rest - item.rate):
                break
            found.add(item.key)
            rest, others = rest - item.rate, others - 1
        alone = {next(iter(fill.items)) for fill in self.fills.values() if len(fill.items) == 1}
        easy = [item for item in ranked if item.key in alone and item.key not in found]   # who is alone stays so until half of what made it so
        return found | {item.key for item in easy if others > 1 and item.rate * 2 >= floor and 2 * item.rate * (others - 1) >= factor * (rest - item.rate)}

    def set_apart(self, heavy):
        """Each heavy stream on a connection of its own, as far as the address may open any; the others leave `heavy`."""
        home = {key: fill for fill in self.fills.values() for key in fill.items}
        for item in sorted((item for item in self.items if item.key in heavy), key=HEAVIEST, reverse=True):
            fill = home.get(item.key)
            if fill is not None and fill.apart:
                continue
            alone = fill is not None and len(fill.items) == 1
            if alone and (self.shared > self.least or self.may_open(apart=True)):
                self.mark(fill, True)
            elif alone or (fill is not None and not self.settings.improve) or not self.may_open(apart=True):
                heavy.discard(item.key)
            else:
                if fill is not None:
                    fill.remove(item)
                    self.attempt.why[item.key] = (f"it brings {item.rate // MILLI:,} messages/s, its {len(fill.items)} neighbours on connection "
                                                  f"{fill.id} {fill.rate // MILLI // len(fill.items):,} each")
                self.open(apart=True).add(item)

    def split(self):
        """Take streams off connections above the target, as few as will do, where others can take them."""
        if not self.settings.improve:
            return
        for fill in sorted(self.fills.values(), key=lambda fill: fill.id):
            before = fill.rate
            while fill.rate > fill.target and len(fill.items) > 1:
                over = fill.rate - fill.target
                ranked = sorted(fill.items.values(), key=HEAVIEST, reverse=True)
                item = next((item for item in reversed(ranked) if item.rate >= over), ranked[0])
                room = self.roomy(item, fill)
                if room is None:
                    break
                fill.remove(item)
                room.add(item)
                self.attempt.why[item.key] = self.over_target(fill, before)

    def over_target(self, fill, rate):
        found = self.settings.limits.get(fill.id)
        share = f", {self.settings.target_percent} % of the {found:,.0f} it was found limited to" if fill.target < self.target else ""
        return f"connection {fill.id} carries {rate // MILLI:,} messages/s, the target is {fill.target // MILLI:,}{share}"

    def roomy(self, item, source):
        """The least loaded connection that stays within the fresh share of the target with this stream, or a new one, or None."""
        found = [fill for fill in self.fills.values() if fill is not source and not fill.apart and fill.takes(item)
                 and (fill.rate + item.rate) * 100 <= fill.target * FRESH_PERCENT]
        if found:
            return min(found, key=lambda fill: (fill.rate, fill.id))
        if self.may_open() and source.rate > item.rate:
            return self.open()
        return None

    def deal(self, waiting):
        """Longest first, each to the least loaded connection that takes it; connections set apart come last."""
        heap = [(fill.apart, fill.rate, len(fill.items), fill.id) for fill in self.fills.values()]
        heapq.heapify(heap)
        full = self.rules.fill
        for item in waiting:
            lightest = self.fills[heap[0][3]] if heap else None
            if lightest is not None and not lightest.apart and lightest.rate + item.rate <= lightest.target and lightest.takes(item):
                lightest.add(item)       # as the rest would find, at a third of the cost
                heapq.heapreplace(heap, (False, lightest.rate, len(lightest.items), lightest.id))
                continue
            aside, home, spill = [], None, None
            while heap:
                entry = heapq.heappop(heap)
                fill = self.fills[entry[3]]
                if full is not None and fill.weight >= full:
                    continue
                if fill.takes(item):
                    if not fill.items or (not fill.apart and fill.rate + item.rate <= fill.target):
                        home = fill
                        break
                    spill = spill or fill
                    if fill.apart or not item.rate:
                        aside.append(entry)
                        break
                aside.append(entry)
            if home is None and (spill is None or self.may_open()):
                home = self.open()
            elif home is None:
                home = spill
                aside = [entry for entry in aside if entry[3] != home.id]
            home.add(item)
            if home.apart:
                self.mark(home, False)
            for entry in [*aside, (False, home.rate, len(home.items), home.id)]:
                heapq.heappush(heap, entry)


