"""Subscriptions, and the number of workers, that change while data flows: `subs add`, `subs remove` and `reload`.

A change is checked whole before anything of it is applied: a mistake leaves everything as it was and says all of
itself. What is placed stays where it is; the workers get the new shards and touch only what differs.
"""
import asyncio

from feedhandler import config as config_
from feedhandler.capacity.plan import PlanError
from feedhandler.config import SubscribeTable
from feedhandler.supervisor import instruments
from feedhandler.venue import Channel

LIST_TIMEOUT_S = 15.0   # a venue's instrument list is waited for so long
LIVE_TABLES = ("subscribe", "venues")   # others take effect at a start; of venues only those not held yet


class ChangeError(ValueError):
    """A change that cannot be made; the text says everything that stands against it."""


def fixed(old, new):
    """Sentences on settings that differ and cannot change in a living instance."""
    before, after = config_.resolved(old), config_.resolved(new)
    for table in before:
        if table not in LIVE_TABLES:
            yield from (f"{table}.{key} is {config_.shown(before[table].get(key))} and would be {config_.shown(value)}"
                        for key, value in after[table].items() if before[table].get(key) != value)
    held = {entry.venue for entry in old.subscribe}
    yield from (f"venues.{name} differs" for name in sorted(held) if before["venues"].get(name) != after["venues"].get(name))


def without(config, venue, symbols, channels, resolve):
    """The [[subscribe]] tables without these symbols' channels; resolve(entry) → its venue.Instruments."""
    kept, gone = [], 0
    dropped = {Channel.parse(text) for text in channels}
    for entry in config.subscribe:
        found = resolve(entry) if entry.venue == venue else []
        leaving = [one for one in found if one.symbol in symbols]
        rest = [text for text in entry.channels if Channel.parse(text) not in dropped]
        if not leaving or len(rest) == len(entry.channels):
            kept.append(entry)
            continue
        gone += len(leaving) * (len(entry.channels) - len(rest))
        staying = [one.symbol for one in found if one.symbol not in symbols]
        kept += [entry.model_copy(update={"symbols": names, "channels": texts}) for names, texts in
                 ((staying, entry.channels), ([one.symbol for one in leaving], rest)) if names and texts]
    return kept, gone


class Changes:
    """The verbs. supervisor's plan, lists and configuration are what they change; one change at a time."""

    def __init__(self, supervisor):
        self.supervisor, self.lock = supervisor, asyncio.Lock()

    async def reload(self, arguments):
        """arguments: path of the configuration ("": that of the start), dry_run."""
        path = arguments.get("path") or self.supervisor.path
        try:
            new = config_.load(path)
        except OSError as error:
            raise ChangeError(f"{path} cannot be read: {error.strerror}; nothing was changed") from None
        except config_.ConfigError as error:
            raise ChangeError(f"{error}\n{len(error.problems)} problem{'s' * (len(error.problems) > 1)}; nothing was changed") from None
        ours = self.supervisor.config.instance
        shared = min(len(ours.cpus), len(new.instance.cpus))
        same = {"name": ours.name, "workers": ours.workers} | ({"cpus": ours.cpus} if new.instance.cpus[:shared] == ours.cpus[:shared] and
                                                               bool(new.instance.cpus) == bool(ours.cpus) else {})
        said = list(fixed(self.supervisor.config, new.model_copy(update={"instance": new.instance.model_copy(update=same)})))
        if said:
            raise ChangeError("\n".join(said) + "\nthese take effect only when the instance is stopped and started; nothing was changed")
        async with self.lock:
            return await self._change(new, arguments.get("dry_run", False), path)

    async def add(self, arguments):
        """arguments: venue, symbols, channels, dry_run."""
        venue, symbols, channels = self._words(arguments)
        entry = SubscribeTable(venue=venue, symbols=symbols, channels=channels)
        async with self.lock:
            config = self.supervisor.config
            new = config.model_copy(update={"subscribe": [*config.subscribe, entry]})
            await self._lists(new)
            self._symbols(venue, symbols)
            return await self._change(new, arguments.get("dry_run", False))

    async def remove(self, arguments):
        """arguments: venue, symbols, channels, dry_run."""
        venue, symbols, channels = self._words(arguments)
        async with self.lock:
            config, homes = self.supervisor.config, self.supervisor.shards.homes
            await self._lists(config)
            if venue not in homes:
                raise ChangeError(f"nothing is subscribed at {venue}; see feedhandler subs list -n {self.supervisor.name}")
            names = {one.symbol for one in self._symbols(venue, symbols)}
            kept, gone = without(config, venue, names, channels,
                                 lambda entry: instruments.resolve(venue, homes[venue].listed, entry.symbols, entry.limit)[0])
            if not gone:
                raise ChangeError(f"none of these is subscribed at {venue}; see feedhandler subs list -n {self.supervisor.name}")
            return await self._change(config.model_copy(update={"subscribe": kept}), arguments.get("dry_run", False))

    def _words(self, arguments):
        entry = {key: arguments.get(key) for key in ("venue", "symbols", "channels")}
        said = [text for _, text in config_.check_subscribe(0, entry)]
        if said or not entry["symbols"] or not entry["channels"]:
            raise ChangeError("\n".join(said) or "give a venue, at least one symbol and at least one channel")
        return entry.values()

    def _symbols(self, venue, symbols):
        found, said = instruments.resolve(venue, self.supervisor.shards.homes[venue].listed, symbols, config_.INSTRUMENT_MAX)
        if said:
            raise ChangeError("\n".join(said) + "\nnothing was changed")
        return found

    async def _lists(self, config):
        """Know every venue of the configuration and its instrument list."""
        supervisor = self.supervisor
        for home in supervisor.shards.know(config):
            supervisor.open_budget(home)
        wanted = {entry.venue for entry in config.subscribe}
        missing = [home for home in supervisor.shards.homes.values() if home.listed is None and home.name in wanted]
        tasks = [supervisor.list_once(home) for home in missing]
        if tasks:
            await asyncio.wait(tasks, timeout=LIST_TIMEOUT_S)
        said = [home.problem or f"{home.name}: no instrument list within {LIST_TIMEOUT_S:g} s" for home in missing if home.listed is None]
        if said:
            raise ChangeError("\n".join(said) + "\nnothing was changed; try again when the venue answers")

    async def _change(self, new, dry_run, path=""):
        supervisor, shards = self.supervisor, self.supervisor.shards
        if not supervisor.planned:
            raise ChangeError("the first plan is not made yet; ask again in a moment")
        await self._lists(new)
        try:
            placement, problems = shards.trial(new)
        except PlanError as error:
            raise ChangeError("it does not fit:\n" + "\n".join(error.problems) + "\nnothing was changed") from None
        before, after = _keys(shards.placement), _keys(placement)
        document = {"name": supervisor.name, "applied": not dry_run, "added": _rows(after.keys() - before.keys()),
                    "removed": _rows(before.keys() - after.keys()),
                    "moved": _rows(key for key in before.keys() & after.keys() if before[key] != after[key]),
                    "opened": sorted(set(after.values()) - set(before.values())),
                    "closed": sorted(set(before.values()) - set(after.values())), "problems": problems}
        before, after = supervisor.config.instance, new.instance
        document.update(workers=after.workers, job=None)
        if not dry_run and after.workers < before.workers:
            supervisor.moves.alone()
            supervisor.apply(new.model_copy(update={"instance": after.model_copy(update={"workers": before.workers, "cpus": before.cpus})}), path)
            document["job"] = supervisor.moves.shrink(after.workers)
        elif not dry_run:
            supervisor.apply(new, path)
        return document


def _keys(placement):
    return {stream.key: connection.id for connection in placement.connections for stream in connection.streams}


def _rows(keys):
    return [{"venue": venue, "endpoint": endpoint, "wire": wire, "line": line} for venue, endpoint, wire, line in sorted(keys)]
