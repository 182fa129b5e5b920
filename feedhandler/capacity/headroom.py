"""How much of every budget is used, and when the next one is reached at the present growth. Pure."""
import typing

from feedhandler.capacity.limits import MILLI, addresses, rate_limit

NS = 1_000_000_000


class Budget(typing.NamedTuple):
    """One budget. where: "connection 3", "address okx/public" or "worker 1"; limit None: none is known or published;
    reached_s: seconds until limit at the present growth, None: not growing, or not known."""
    where: str
    what: str
    used: float
    limit: float | None
    learned: bool              # measured or guessed rates against a target, rather than a documented limit
    reached_s: float | None = None


def budgets(fills, profiles, settings):
    """Budgets of every connection, address and worker that holds something; an address's include what others hold of it.
    fills: limits.Fill, by id."""
    found, open_, streams, cpu, growth, held = [], {}, {}, {}, {}, {}
    places = addresses(profiles, settings)
    for fill in fills:
        address = places[fill.place]
        open_[address] = open_.get(address, 0) + 1
        streams[address] = streams.get(address, 0) + len(fill.items)
        items = fill.items.values()
        worker = fill.worker
        cpu[worker] = cpu.get(worker, 0) + sum([item.cpu for item in items])
        growth[worker] = growth.get(worker, 0) + sum([item.growth * item.cpu // item.rate for item in items if item.growth and item.rate])
        held[worker] = held.get(worker, 0) + len(items)
        found += _of_connection(fill, profiles[fill.place[:2]], settings)
    for address in sorted(open_, key=lambda address: address.name):
        where, (connections, others) = f"address {address.name}", address.others
        found.append(Budget(where, "connections", open_[address] + connections, _all(address.connections, connections), False))
        if address.comfort != address.connections:
            reserve = address.connections - address.comfort
            found.append(Budget(where, "connections for rollovers", max(0, open_[address] - address.comfort), reserve, False))
        found.append(Budget(where, "streams", streams[address] + others, _all(address.streams, others), False))
    for worker in sorted(cpu):
        where, limit = f"worker {worker}", NS * settings.target_percent // 100
        found.append(Budget(where, "streams", held[worker], settings.streams_per_worker, False))
        found.append(Budget(where, "cpu", cpu[worker] / NS, limit / NS, True, _reached(cpu[worker], limit, growth[worker] / MILLI)))
    return found


def _all(ours, others):
    return None if ours is None else ours + others


def _of_connection(fill, profile, settings):
    where = f"connection {fill.id}"
    yield Budget(where, "streams", fill.weight, profile.fill, False)
    if profile.max_args_chars_per_conn is not None:
        yield Budget(where, "characters", fill.chars, profile.max_args_chars_per_conn, False)
    for (glob, most), used in zip(profile.soft_by_channel, fill.kinds):
        yield Budget(where, f"streams {glob}", used, most, False)
    limit = rate_limit(profile, settings, fill.id) * settings.target_percent // 100
    grows = sum([item.growth for item in fill.items.values() if item.growth])
    yield Budget(where, "messages/s", fill.rate / MILLI, limit / MILLI, True, _reached(fill.rate, limit, grows / MILLI))


def _reached(used, limit, growth):
    """Seconds until used is limit, growing by `growth` a second; 0: it is already."""
    if used >= limit:
        return 0.0
    return (limit - used) / growth if growth > 0 else None


def next_reached(found):
    """The Budget that is reached first, or None where nothing grows."""
    return min((budget for budget in found if budget.reached_s is not None), key=lambda budget: budget.reached_s, default=None)
