"""The last resort of a plan: any placement that keeps the hard limits, found by a bounded search. Pure.

Where longest-first packing leaves something over, a few streams more often fit in another order: larger first, each
instrument on the first worker and each stream on the first connection that takes it, going back where nothing does.
Loads do not count here. Within STEP_MAX a case of a dozen streams is searched whole; of a larger one the first dive,
which packs first-fit decreasing, and what lies around its end.
"""
from feedhandler.capacity.limits import Fill

ITEM_MAX = 1000     # streams; more are not tried: a dive costs their number times that of connections
STEP_MAX = 20_000   # choices made, some 50 ms


def squeeze(units, rules, places, placement, settings):
    """{unit: worker} and [(worker, place, [streams])] of its connections, or None where none was found. units: {unit: [Item]}."""
    if sum(map(len, units.values())) > ITEM_MAX:
        return None
    search = _Search(units, rules, places, placement, settings)
    return (search.home, search.found()) if search.run() else None


class _Search:
    """A chain of choices, each a generator: it makes one, yields, and takes it back before the next."""

    def __init__(self, units, rules, places, placement, settings):
        self.units, self.rules, self.places, self.settings = units, rules, places, settings
        self.was = {**placement.workers, **{~id: worker for id, worker in placement.standbys.items()}}
        self.home, self.groups, self.open = {}, {}, {}      # groups: (worker, place) → [Fill]
        self.count = {worker: 0 for worker in range(settings.workers) if worker not in settings.drained}
        self.steps = []
        for unit, items in sorted(units.items(), key=lambda entry: (-len(entry[1]), -sum(item.chars for item in entry[1]), entry[0])):
            self.steps += [unit, *sorted(items, key=lambda item: (-item.weight, -len(item.tokens), -item.chars, item.key))]

    def run(self):
        """Whether a placement was found; then it stands in home and groups."""
        chain = [self.of_unit(self.steps[0])]
        for _ in range(STEP_MAX):
            if next(chain[-1], False):
                if len(chain) == len(self.steps):
                    return True
                step = self.steps[len(chain)]
                chain.append(self.of_unit(step) if isinstance(step, int) else self.of_item(step))
            else:
                chain.pop()
                if not chain:
                    return False
        return False

    def of_unit(self, unit):
        size, was = len(self.units[unit]), self.was.get(unit)
        empty = False                    # one empty worker is like another
        for worker in sorted(self.count, key=lambda worker: (worker != was, self.count[worker] == 0, worker)):
            if self.count[worker] + size > self.settings.streams_per_worker or self.home.get(~unit) == worker or (empty and not self.count[worker]):
                continue
            empty |= not self.count[worker]
            self.home[unit] = worker
            self.count[worker] += size
            yield True
            self.count[worker] -= size
            del self.home[unit]

    def of_item(self, item):
        worker, address = self.home[item.unit], self.places[item.place]
        group = self.groups.setdefault((worker, item.place), [])
        for fill in list(group):
            if fill.takes(item):
                fill.add(item)
                yield True
                fill.remove(item)
        open_ = self.open.get(address, 0)
        if address.connections is None or open_ < address.connections:
            self.open[address] = open_ + 1
            group.append(Fill(0, worker, item.place, self.rules[item.place[:2]]))
            group[-1].add(item)
            yield True
            group.pop()
            self.open[address] = open_

    def found(self):
        return [(worker, place, [item.stream for item in fill.items.values()]) for (worker, place), group in self.groups.items() for fill in group]
