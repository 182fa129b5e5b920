"""What a venue allows on one endpoint (class of addresses), as the plan and the budgets need it. Pure.

A venue file holds a profile as a dict (feedhandler/venues/README.md). merge() applies an operator's overrides and
answers a dict of the same form, which workers get too; Profile.read() checks one and gives it types.
"""
import dataclasses
import fnmatch
import functools
import json
import re

CHANNEL_CACHE_MAX = 1 << 16  # wire texts whose channel is remembered
USE_PERCENT = 80  # of any documented limit shared by this address
BAN_DEFAULT_S = 5  # how long nothing is tried where a venue shut us out and neither it nor its documents say for how long


@dataclasses.dataclass(frozen=True, slots=True)
class Window:
    """n events in any per_s seconds."""
    n: int
    per_s: float


ATTEMPTS_DEFAULT = (Window(100, 10.0), Window(300, 300.0))   # connection attempts where a venue documents none: those of Binance spot


@dataclasses.dataclass(frozen=True, slots=True)
class Profile:
    """Four kinds of budget: slots of a connection, budgets of the address, operations over time, data rate.
    None: the venue publishes no limit."""
    venue: str
    endpoint: str
    # slots of one connection
    max_per_conn: int | None = None
    soft_per_conn: int | None = None
    max_args_chars_per_conn: int | None = None
    weight_by_channel: tuple = ()      # (glob, weight): what a stream takes of max_per_conn
    soft_by_channel: tuple = ()        # (glob, count): streams of this kind on one connection
    exclusive: tuple = ()              # pairs of channels that one connection may not carry for one symbol
    routing: tuple = ()                # (glob, delivered)
    # budgets of the address, shared by all workers
    max_open: int | None = None
    counts_http: bool = False
    max_per_ip: int | None = None
    attempts: tuple = ()
    operations: tuple = ()             # windows of subscribe and unsubscribe messages of all connections together
    credits: tuple = ()                # (pool, refill_per_s) of such messages, where the venue counts them by address
    ban_s: int | None = None
    held_open: int = 0                 # what other instances of this host hold of max_open and max_per_ip
    held_streams: int = 0
    # operations over time, on one connection
    messages: tuple = ()
    pace_ms: int = 0
    lifetime_s: float | None = None    # the venue cuts a connection of this age
    # learned or given data rate of one connection
    messages_per_s: int | None = None

    @classmethod
    def read(cls, profile):
        """Of a profile dict. ValueError names what is not as it should be."""
        where = f"{profile.get('venue', '?')}/{profile.get('endpoint', '?')}"
        conn, sub, client = (_table(profile, key, where) for key in ("conn", "sub", "client_msg"))
        return cls(
            profile["venue"], profile["endpoint"],
            *(_count(sub, key, where) for key in ("max_per_conn", "soft_per_conn", "max_args_chars_per_conn")),
            tuple(sorted(_table(sub, "weight_by_channel", where).items())),
            tuple(sorted(_table(sub, "soft_by_channel", where).items())),
            tuple(tuple(pair) for pair in sub.get("exclusive") or ()),
            tuple((route["channel_glob"], bool(route["delivered"])) for route in profile.get("routing") or ()),
            _count(conn, "max_open", where), bool(conn.get("counts_http")), _count(sub, "max_per_ip", where),
            _windows(conn.get("attempts"), where), _windows([row for row in client.get("windows") or () if _shared(row)], where),
            _credits(client, where), _count(conn, "ban_s", where), 0, 0,
            _windows(client.get("windows"), where), int(client.get("pace_ms") or 0), _table(profile, "lifetime", where).get("max_s"),
            _count(_table(profile, "rate", where), "messages_per_s", where))

    @property
    def connections_usable(self):
        """Connections we may hold open at once beside the other instances, below the documented limit; None: unlimited."""
        return None if self.max_open is None else max(0, self.connections_limit - self.http_open - self.held_open)

    @property
    def connections_limit(self):
        """Connections all instances of this host may hold open at once, REST's among them where they count; None: unlimited."""
        return None if self.max_open is None else max(1 + self.http_open, self.max_open * USE_PERCENT // 100)

    @property
    def http_open(self):
        """Connections that REST takes of max_open: one an instance, where the venue counts them together."""
        return 1 if self.counts_http else 0

    @property
    def streams_usable(self):
        """Streams we may hold at once beside the other instances; None: unlimited."""
        return None if self.max_per_ip is None else max(0, self.streams_limit - self.held_streams)

    @property
    def streams_limit(self):
        """Streams all instances of this host may hold at once; None: unlimited."""
        return None if self.max_per_ip is None else max(1, self.max_per_ip * USE_PERCENT // 100)

    @property
    def shares_operations(self):
        """Whether subscribe messages of all connections of the address draw from one budget."""
        return bool(self.operations or self.credits)

    @property
    def fill(self):
        """Weight a connection is filled to; None: unlimited."""
        limits = [limit for limit in (self.soft_per_conn, self.max_per_conn) if limit is not None]
        return min(limits) if limits else None

    def weight(self, wire):
        return next((weight for glob, weight in self.weight_by_channel if fnmatch.fnmatchcase(channel_of(wire), glob)), 1)

    def delivered(self, wire):
        """Whether this endpoint delivers the stream at all: a refusal beats a wildcard."""
        said = [(glob, delivered) for glob, delivered in self.routing
                if fnmatch.fnmatchcase(wire, glob) or fnmatch.fnmatchcase(channel_of(wire), glob)]
        named = [delivered for glob, delivered in said if glob != "*"] or [delivered for _, delivered in said]
        return all(named) if named else not self.routing


@functools.lru_cache(maxsize=CHANNEL_CACHE_MAX)
def channel_of(wire):
    """The venue's channel in a wire text: the channel of a JSON argument, else the text itself."""
    if not wire.startswith("{"):
        return wire
    try:
        return str(json.loads(wire).get("channel", wire))
    except ValueError:
        return wire


def _table(table, key, where):
    value = table.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"profile {where}: {key} is {value!r}, expected a table")
    return value


def _count(table, key, where):
    value = table.get(key)
    if value is not None and (type(value) is not int or value < 1):
        raise ValueError(f"profile {where}: {key} is {value!r}, expected a whole number above 0 or null")
    return value


def _windows(rows, where):
    windows = tuple(Window(row["n"], float(row["per_s"])) for row in rows or ())
    for window in windows:
        if type(window.n) is not int or window.n < 1 or window.per_s <= 0:
            raise ValueError(f"profile {where}: a window of {window.n!r} in {window.per_s!r} s, expected numbers above 0")
    return windows


def _shared(row):
    """Whether a window or credits of a profile count all connections of an address or account together."""
    return (row.get("scope") or "conn") != "conn"


def _credits(client, where):
    """(pool, refill_per_s) in operations of the credits that an address shares; () where there are none."""
    credits = _table(client, "credits", where)
    for key in ("cost", "pool", "refill_per_s") if credits else ():
        if type(credits.get(key)) is not int or credits[key] < 1:
            raise ValueError(f"profile {where}: credits.{key} is {credits.get(key)!r}, expected a whole number above 0")
    if not credits or not _shared(credits):
        return ()
    return max(1, credits["pool"] // credits["cost"]), credits["refill_per_s"] / credits["cost"]


_PLACES = {**{key: ("sub", key) for key in ("max_per_conn", "soft_per_conn", "max_per_ip", "max_args_per_msg", "max_args_chars_per_conn",
                                            "weight_by_channel", "soft_by_channel")},
           **{key: ("conn", key) for key in ("max_open", "attempts", "ban_s")},
           "messages": ("client_msg", "windows"), "operations": ("client_msg", "windows"), "credits": ("client_msg", "credits"),
           "pace_ms": ("client_msg", "pace_ms"), "lifetime_s": ("lifetime", "max_s"), "messages_per_s": ("rate", "messages_per_s")}


def merge(profile, overrides):
    """A copy of a profile dict with an operator's limits in their places. ValueError on an unknown limit or a bad value."""
    merged = dict(profile)
    for key, value in overrides.items():
        if key not in _PLACES:
            raise ValueError(f"limit {key!r} is not known; there are {', '.join(_PLACES)}")
        table, field = _PLACES[key]
        old = merged.get(table) or {}
        if field == "windows":   # those of a connection and those of the address stand in one list
            shared = key == "operations"
            value = [row for row in old.get(field) or () if _shared(row) != shared] + [{**row, "scope": "ip" if shared else "conn"} for row in value]
        elif key == "credits":   # whose they are does not change with how many there are
            value = {"scope": (old.get(key) or {}).get("scope", "conn"), **value}
        merged[table] = {**old, field: value}
    Profile.read(merged)
    return merged


_UNITS = {"s": 1, "sec": 1, "second": 1, "min": 60, "m": 60, "minute": 60, "h": 3600, "hour": 3600}


def rest_window(profile):
    """Window of the REST weight a profile documents as a sentence ("6000 weight/min/IP", "20 req/2s"); None: none."""
    rest = profile.get("rest") or {}
    for key in ("budget", "weight"):
        found = re.search(r"([\d,]+) (?:weight|req\w*) ?(?:/|per) ?(\d*) ?(second|sec|s|minute|min|m|hour|h)\b", str(rest.get(key) or ""))
        burst = re.search(r"burst (\d+)", str(rest.get(key) or ""))
        if found and burst:  # a bucket: as many as its burst, in the time it takes to fill
            per_s = int(found[2] or 1) * _UNITS[found[3]] / int(found[1].replace(",", ""))
            return Window(int(burst[1]), int(burst[1]) * per_s)
        if found:
            return Window(int(found[1].replace(",", "")), int(found[2] or 1) * _UNITS[found[3]])
    return None


# -- showing -------------------------------------------------------------------------------------------------

def described(profile):
    """Every budget of a profile dict as a row {kind, what, documented, used_to, note}: kind is one of "connection",
    "address", "over time", "learned"; documented None: not published; used_to is what the plan and the permits keep to."""
    typed = Profile.read(profile)
    return [*_of_connection(profile, typed), *_of_address(profile, typed), *_over_time(profile),
            _row("learned", "messages/s", typed.messages_per_s, None, "no venue publishes it: measured a stream, kept below load.target_percent")]


def _row(kind, what, documented, used_to, note=""):
    return {"kind": kind, "what": what, "documented": documented, "used_to": used_to, "note": note}


def _of_connection(profile, typed):
    sub = profile.get("sub") or {}
    soft = f"filled to {typed.soft_per_conn:,}, not to the maximum" if typed.soft_per_conn else ""
    yield _row("connection", "streams", typed.max_per_conn, typed.fill, soft)
    if typed.max_args_chars_per_conn:
        yield _row("connection", "characters of all arguments", typed.max_args_chars_per_conn, typed.max_args_chars_per_conn)
    for glob, most in typed.soft_by_channel:
        yield _row("connection", f"streams of {glob}", most, most)
    for glob, weight in typed.weight_by_channel:
        yield _row("connection", f"weight of {glob}", weight, weight, "counts so many streams")
    for pair in typed.exclusive:
        yield _row("connection", " and ".join(pair), 1, 1, "one of them a symbol")
    for key, what in (("max_args_per_msg", "arguments of one message"), ("max_msg_bytes", "bytes of one message")):
        if sub.get(key):
            yield _row("connection", what, sub[key], sub[key])


def _of_address(profile, typed):
    conn = profile.get("conn") or {}
    scope = conn.get("max_open_scope") or "ip"
    yield _row("address", f"connections open ({scope})", typed.max_open, typed.connections_usable, "one is left for REST" if typed.counts_http else "")
    yield _row("address", "streams (ip)", typed.max_per_ip, typed.streams_usable)
    for window in conn.get("attempts") or ():
        yield _window("address", "connection attempts", window, conn.get("reject") or "")
    for window in () if conn.get("attempts") else ATTEMPTS_DEFAULT:
        yield _row("address", "connection attempts", None, f"{window.n * USE_PERCENT // 100:,} in {window.per_s:g} s", "a default of ours")
    yield _row("address", "ban over a limit", f"{typed.ban_s:,} s" if typed.ban_s else None, f"{typed.ban_s or BAN_DEFAULT_S:,} s",
               "repeated, it is taken for twice as long; Retry-After goes before")
    yield from _operations(profile, True)
    weight = rest_window(profile)
    if weight:
        yield _window("address", "REST weight", {"n": weight.n, "per_s": weight.per_s, "scope": "ip"}, "")


def _over_time(profile):
    client = profile.get("client_msg") or {}
    found = list(_operations(profile, False))
    yield from found
    if not found:
        yield _row("over time", "messages we send", None, None)
    if client.get("pace_ms"):
        yield _row("over time", "pause between two of them", None, f"{client['pace_ms']} ms", "ours")
    lifetime = (profile.get("lifetime") or {}).get("max_s")
    yield _row("over time", "life of a connection", f"{lifetime:,} s" if lifetime else None, None)


def _operations(profile, shared):
    """Rows of messages over time: those of all connections of an address together, or those of each connection."""
    client, kind = profile.get("client_msg") or {}, "address" if shared else "over time"
    counted = "subscribe, unsubscribe and login" if client.get("counts_ops") == "sub_unsub_login" else "all texts"
    counted += ", pings and pongs" if client.get("counts_control_frames") else ""
    strict = "in any such span; " if client.get("window_kind") == "rolling_strict" else ""
    for window in client.get("windows") or ():
        if _shared(window) == shared:
            yield _window(kind, "messages we send", window, f"{strict}counts {counted}")
    credits = client.get("credits")
    if credits and _shared(credits) == shared:
        yield _row(kind, "credits" + (f" ({credits['scope']})" if shared else ""),
                   f"{credits['cost']:,} a subscribe of {credits['pool']:,}, {credits['refill_per_s']:,} more a second",
                   f"{credits['pool'] * USE_PERCENT // 100:,}, {credits['refill_per_s'] * USE_PERCENT // 100:,} a second", client.get("over") or "")


def _window(kind, what, window, note):
    scope = {"conn": "", None: ""}.get(window.get("scope"), f" ({window.get('scope')})")
    return _row(kind, what + scope, f"{window['n']:,} in {window['per_s']:g} s", f"{max(1, window['n'] * USE_PERCENT // 100):,} in {window['per_s']:g} s", note)
