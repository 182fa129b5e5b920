"""The configuration: a TOML file, checked whole. Pure but for reading the file.

load() answers a Config or raises ConfigError with every mistake at once: file, line, key, what came, what is allowed,
and the nearest name where one was mistyped.
"""
import difflib
import ipaddress
import json
import os
import re
import tomllib
import typing
import urllib.parse

import pydantic

from feedhandler import instance, venues
from feedhandler.venue import CHANNELS, Channel, VenueError

WORKER_MAX = 64            # of the 256 rings a reader maps; more workers than CPUs help nobody
SLOT_MIN, SLOT_MAX = 1024, 1 << 26
INSTRUMENT_MAX = 1 << 16
SUBSCRIBE_MAX = 1000       # [[subscribe]] tables
CONFIG_SIZE_MAX = 4 << 20  # bytes; 50,000 symbols by name take 1 MB


class ConfigError(ValueError):
    """All mistakes of one file: .problems is a list of Problem, str() is one line each."""

    def __init__(self, problems):
        self.problems = sorted(problems, key=lambda problem: (problem.line, problem.key))
        super().__init__("\n".join(map(str, self.problems)))


class Problem(typing.NamedTuple):
    """One mistake: where it is and one sentence that says what to write instead."""
    file: str
    line: int
    key: str
    text: str

    def __str__(self):
        return f"{self.file}:{self.line}: {self.text}"


# -- settings ------------------------------------------------------------------------------------------------

def setting(default, text, allowed, **limits):
    """A field with its sentence and its allowed range, both shown by `config schema` and in errors."""
    extra = {"json_schema_extra": {"allowed": allowed}, "description": text}
    if isinstance(default, (list, dict)):
        return pydantic.Field(default_factory=lambda: type(default)(default), **extra, **limits)
    return pydantic.Field(default, **extra, **limits)


class _Table(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True, frozen=True)


class InstanceTable(_Table):
    name: str = setting("main", "Name of the instance: its directory is /dev/shm/feedhandler-<name>.",
                        "1 to 40 letters, digits, '-' or '_', beginning with a letter or digit")
    workers: int = setting(1, "Worker processes; each owns a shard of the instruments.", f"1 to {WORKER_MAX}", ge=1, le=WORKER_MAX)
    cpus: list[int] = setting([], "CPU of each worker, in order; empty: not pinned.",
                              "as many distinct CPU numbers of this machine as there are workers, or none")
    spin: bool = setting(False, "Workers poll their sockets instead of sleeping: lowest latency, one whole CPU each.", "true or false")
    frame_size_max: int = setting(16 << 20, "Largest WebSocket message accepted, in bytes.", "65,536 to 268,435,456", ge=1 << 16, le=1 << 28)
    strict_utf8: bool = setting(True, "Check that text frames are UTF-8 and close with 1007 when not.", "true or false")
    ready_timeout_s: float = setting(30.0, "How long `start` waits for every stream to reach a named state.", "1 to 600", ge=1, le=600)


class RingTable(_Table):
    slots: int = setting(1 << 18, "Records each worker's ring holds; one takes 64 bytes.",
                         f"a power of two from {SLOT_MIN:,} to {SLOT_MAX:,}")


class BooksTable(_Table):
    levels: int = setting(20_000, "Levels kept a side of a book; memory is taken as they come. Past it the worst are dropped and counted.", "10 to 200,000", ge=10, le=200_000)


class InstrumentsTable(_Table):
    max: int = setting(1024, "Rows of the instrument table: instruments this instance can hold.", f"1 to {INSTRUMENT_MAX:,}",
                       ge=1, le=INSTRUMENT_MAX)


class RestartTable(_Table):
    crashes: int = setting(5, "A worker that dies this often within window_s is left down and its shard quarantined.", "1 to 100", ge=1, le=100)
    window_s: float = setting(60.0, "Length of the window for crashes, in seconds.", "1 to 3,600", ge=1, le=3600)
    silent_ms: int = setting(500, "A worker without a heartbeat for this long is killed and started anew.", "200 to 60,000", ge=200, le=60_000)


class LoadTable(_Table):
    messages_per_s: int = setting(20_000, "Messages a second one connection is taken to carry.", "10 to 1,000,000", ge=10, le=1_000_000)
    target_percent: int = setting(60, "Share of that, and of a worker's CPU, that the plan uses.", "10 to 100", ge=10, le=100)
    auto_rebalance: bool = setting(False, "Apply what `plan` proposes where a connection is throttled or a worker falls behind; else it is only shown.",
                                   "true or false")
    streams_per_worker: int = setting(2000, "Streams planned for one worker at most.", "1 to 100,000", ge=1, le=100_000)


class WindowTable(_Table):
    n: int = setting(1, "Events allowed in per_s seconds.", "1 to 1,000,000", ge=1, le=1_000_000)
    per_s: float = setting(1.0, "Length of the window, in seconds.", "0.001 to 86,400", ge=0.001, le=86_400)


class CreditsTable(_Table):
    cost: int = setting(1, "Credits one subscribe or unsubscribe takes.", "1 to 1,000,000,000", ge=1, le=1_000_000_000)
    pool: int = setting(1, "Credits there are at most.", "1 to 1,000,000,000", ge=1, le=1_000_000_000)
    refill_per_s: int = setting(1, "Credits that come back in a second.", "1 to 1,000,000,000", ge=1, le=1_000_000_000)


_LIMIT = {"ge": 1, "le": 1_000_000}
_COUNT = typing.Annotated[int, pydantic.Field(ge=1, le=1_000_000)]


class LimitTable(_Table):
    """Overrides of one endpoint's capacity profile; what is absent stays as the venue documents it."""
    max_per_conn: int | None = setting(None, "Streams on one connection at most.", "1 to 1,000,000", **_LIMIT)
    soft_per_conn: int | None = setting(None, "Streams on one connection the plan fills to.", "1 to 1,000,000", **_LIMIT)
    max_open: int | None = setting(None, "Connections open at once from this address.", "1 to 1,000,000", **_LIMIT)
    max_per_ip: int | None = setting(None, "Streams at once from this address.", "1 to 1,000,000", **_LIMIT)
    max_args_chars_per_conn: int | None = setting(None, "Characters of all arguments on one connection.", "1 to 1,000,000", **_LIMIT)
    attempts: list[WindowTable] | None = setting(None, "Connection attempts from this address.", "a list of { n = 300, per_s = 300 }")
    ban_s: int | None = setting(None, "How long the venue shuts this address out over a limit.", "1 to 604,800", ge=1, le=604_800)
    operations: list[WindowTable] | None = setting(None, "Messages we send on all connections of this address together.", "a list of { n = 5, per_s = 1 }")
    messages: list[WindowTable] | None = setting(None, "Messages we send on one connection.", "a list of { n = 5, per_s = 1 }")
    credits: CreditsTable | None = setting(None, "Token bucket of subscribes, of a connection or the address as the venue counts.",
                                           "{ cost = 3000, pool = 30000, refill_per_s = 10000 }")
    max_args_per_msg: int | None = setting(None, "Streams named in one message.", "1 to 1,000,000", **_LIMIT)
    weight_by_channel: dict[str, _COUNT] | None = setting(None, "Streams of max_per_conn that one of a kind of channel counts for.", "patterns and 1 to 1,000,000")
    soft_by_channel: dict[str, _COUNT] | None = setting(None, "Streams of a kind of channel on one connection.", "patterns and 1 to 1,000,000")
    lifetime_s: int | None = setting(None, "Age at which the venue closes a connection.", "60 to 31,536,000", ge=60, le=31_536_000)
    messages_per_s: int | None = setting(None, "Messages a second one connection is taken to carry.", "10 to 1,000,000", ge=10, le=1_000_000)
    pace_ms: int | None = setting(None, "Shortest time between two messages we send.", "0 to 60,000", ge=0, le=60_000)


class VenueTable(_Table):
    urls: dict[str, str] = setting({}, "WebSocket address of an endpoint, instead of the venue's own.", "an endpoint's name and a wss:// address")
    urls_b: dict[str, str] = setting({}, "WebSocket address of an endpoint for line B, as another host of the venue; absent: that of line A.",
                                     "an endpoint's name and a wss:// address")
    source: str = setting("", "Local address that connections leave from; empty: the system's choice.", "an IP address of this machine")
    source_b: str = setting("", "Local address that connections of line B leave from. The venue counts it apart: with it each line has connections and "
                            "streams of its own.", "another IP address of this machine than source, which it needs")
    rest: str = setting("", "Base of the REST addresses, instead of the venue's own.", "an https:// address")
    ca_file: str = setting("", "PEM file of the authorities to trust, instead of the system's.", "a readable file, relative to this file")
    rest_weight: WindowTable | None = setting(None, "REST weight this address may spend.", "{ n = 6000, per_s = 60 }")
    first_data_s: float | None = setting(None, "How long an acknowledged stream may stay silent before it is asked for again, instead of the venue file's own.",
                                         "0.1 to 3,600", ge=0.1, le=3600)
    limits: dict[str, LimitTable] = setting({}, "Overrides of an endpoint's capacity profile.", "an endpoint's name and its limits")


class SubscribeTable(_Table):
    venue: str = setting(..., "Venue to subscribe at.", "the name of a venue, as in \"okx\"")
    symbols: list[str] = setting(..., "Canonical symbols (BTC-USDT, BTC-USDT-PERP) or the venue's own; \"*\" is all, bounded by limit.",
                                 "one or more symbols", min_length=1)
    channels: list[str] = setting(..., "What to subscribe: a channel with optional depth and speed.",
                                  "one or more of " + ", ".join(CHANNELS) + ", as in \"book20@100ms\"", min_length=1)
    lines: int = setting(1, "Redundant lines: 2 holds every stream on two connections.", "1 or 2", ge=1, le=2)
    priority: int = setting(9, "Where a connection is throttled and nothing else helps, streams of the lowest priority are shed first; those of 9 never.",
                            "0 to 9", ge=0, le=9)
    standby: bool = setting(False, "A second worker holds these instruments in private and takes over when the first one dies.", "true or false")
    limit: int = setting(100, "Instruments \"*\" may take, in the venue's own order.", "1 to 65,536", ge=1, le=INSTRUMENT_MAX)


class Config(_Table):
    instance: InstanceTable = setting({}, "Processes.", "a table", validate_default=True)
    ring: RingTable = setting({}, "Event rings.", "a table", validate_default=True)
    books: BooksTable = setting({}, "Books.", "a table", validate_default=True)
    instruments: InstrumentsTable = setting({}, "Instrument table.", "a table", validate_default=True)
    restart: RestartTable = setting({}, "Crash and hang handling.", "a table", validate_default=True)
    load: LoadTable = setting({}, "Target loads of the plan.", "a table", validate_default=True)
    venues: dict[str, VenueTable] = setting({}, "Overrides by venue.", "tables named after venues")
    subscribe: list[SubscribeTable] = setting([], "Subscriptions.", f"up to {SUBSCRIBE_MAX:,} [[subscribe]] tables", max_length=SUBSCRIBE_MAX)


# -- reading -------------------------------------------------------------------------------------------------

def load(path):
    """The Config of a file, or ConfigError with all its mistakes. OSError where it cannot be read."""
    with open(path, "rb") as file:
        data = file.read(CONFIG_SIZE_MAX + 1)
    if len(data) > CONFIG_SIZE_MAX:
        raise ConfigError([Problem(str(path), 1, "", f"the file is larger than {CONFIG_SIZE_MAX:,} bytes")])
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ConfigError([Problem(str(path), line, "", f"byte {error.start} is not UTF-8; save the file as UTF-8")]) from None
    return parse(text, str(path))


def parse(text, file="feedhandler.toml"):
    """The Config of a TOML text; file is for messages, and ca_file is relative to its folder."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        found = re.search(r" \(at (?:line (\d+), column \d+|end of document)\)", str(error))
        line = int(found[1]) if found and found[1] else text.count("\n") + 1
        raise ConfigError([Problem(file, line, "", f"this is not TOML: {str(error).split(' (at ')[0].lower()}")]) from None
    lines = locate(text)
    problems = []
    try:
        config = Config.model_validate(document)
    except pydantic.ValidationError as error:
        problems = [_problem(file, lines, found, document) for found in error.errors()]
        config = None
    spoiled = {problem.key for problem in problems}
    problems += [Problem(file, line_of(lines, loc), key_text(loc), said) for loc, said in _check(document, os.path.dirname(os.path.abspath(file)))
                 if not _below(key_text(loc), spoiled)]
    if problems:
        raise ConfigError(problems)
    return config


def _below(key, spoiled):
    return any(key == other or key.startswith((other + ".", other + "[")) for other in spoiled)


def key_text(loc):
    """("subscribe", 0, "venue") as subscribe[0].venue."""
    text = ""
    for part in loc:
        text += f"[{part}]" if isinstance(part, int) else f".{part}" if text else str(part)
    return text


def line_of(lines, loc):
    """Line of a key, or of the nearest table that holds it."""
    while loc and tuple(loc) not in lines:
        loc = loc[:-1]
    return lines.get(tuple(loc), 1)


def _plain(kind):
    """int | None as int."""
    inner = [part for part in typing.get_args(kind) if part is not type(None)]
    return inner[0] if type(None) in typing.get_args(kind) else kind


def _model(loc):
    """(model, field) that a location names: the model of its inside, or None, and the field it lies in, or None."""
    kind, field = Config, None
    for part in loc:
        if isinstance(kind, type) and issubclass(kind, pydantic.BaseModel):
            field = kind.model_fields.get(part)
            if field is None:
                return kind, None
            kind = _plain(field.annotation)
        elif typing.get_args(kind):
            kind = _plain(typing.get_args(kind)[-1])
    return (kind if isinstance(kind, type) and issubclass(kind, pydantic.BaseModel) else None), field


def _problem(file, lines, found, document):
    loc = found["loc"]
    key, line = key_text(loc), line_of(lines, loc)
    model, field = _model(loc)
    if found["type"] == "extra_forbidden":
        parent, _ = _model(loc[:-1])
        text = f"{key} is not a setting{_mean(loc[-1], (parent or Config).model_fields, key_text(loc[:-1]))}"
    elif found["type"] == "missing":
        text = f"{key} is missing; give {_allowed(field)}"
    else:
        text = f"{key} is {shown(found['input'])}, allowed is {_allowed(field)}"
    return Problem(file, line, key, text)


def _allowed(field):
    return (field.json_schema_extra or {}).get("allowed", "another value") if field is not None else "another value"


def _mean(word, names, prefix=""):
    """A did-you-mean, or the names there are."""
    names = list(names)
    near = difflib.get_close_matches(str(word), names, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {prefix + '.' if prefix else ''}{near[0]}?"
    return f"; there are {', '.join(names)}" if names else ""


def shown(value):
    """A value as TOML would write it, cut to a line."""
    text = json.dumps(value, default=str, ensure_ascii=True)
    return text if len(text) <= 60 else text[:57] + "..."


# -- rules a type cannot say -----------------------------------------------------------------------------------

def _check(document, folder):
    """(location, sentence) of every broken rule, on the raw document: what is of a wrong type was said already."""
    table = _get(document, "instance", dict)
    name = _get(table, "name", str, "main")
    try:
        instance.check_name(name)
    except instance.InstanceError as error:
        yield ("instance", "name"), str(error)
    yield from _check_cpus(table)
    slots = _get(_get(document, "ring", dict), "slots", int, SLOT_MIN)
    if not SLOT_MIN <= slots <= SLOT_MAX or slots & (slots - 1):
        yield ("ring", "slots"), f"ring.slots is {slots}, allowed is a power of two from {SLOT_MIN:,} to {SLOT_MAX:,}" + _power(slots)
    for name, entry in _get(document, "venues", dict).items():
        yield from _check_venue(name, entry, folder)
    for index, entry in enumerate(_get(document, "subscribe", list)):
        yield from check_subscribe(index, entry)
        if isinstance(entry, dict) and entry.get("standby") is True and _get(table, "workers", int, 1) < 2:
            yield ("subscribe", index, "standby"), (f"subscribe[{index}].standby is true, but there is one worker; a standby lives on a second one: set "
                                                    f"instance.workers = 2")


def _get(table, key, kind, default=None):
    value = table.get(key) if isinstance(table, dict) else None
    return value if type(value) is kind else (kind() if default is None else default)


def _power(slots):
    inside = min(max(slots, SLOT_MIN), SLOT_MAX)
    return f"; the next one is {1 << (inside - 1).bit_length()}"


def _check_cpus(table):
    workers, cpus = _get(table, "workers", int, 1), _get(table, "cpus", list)
    usable = os.sched_getaffinity(0)
    where = ("instance", "cpus")
    if any(type(cpu) is not int for cpu in cpus):
        return
    absent = [cpu for cpu in cpus if cpu not in usable]
    if absent:
        yield where, f"instance.cpus names CPU {', '.join(map(str, absent))}; this process may use {_ranges(usable)}"
    if len(set(cpus)) < len(cpus):
        yield where, f"instance.cpus is {shown(cpus)}, a CPU stands there twice; give each worker its own"
    if cpus and len(cpus) != workers:
        yield where, f"instance.cpus has {len(cpus)} CPUs for {workers} workers; give one a worker, or none"
    if table.get("spin") is True and (not cpus or len(usable) <= workers):
        why = "instance.cpus is empty" if not cpus else f"{workers} workers would take all of the {len(usable)} CPUs"
        yield ("instance", "spin"), f"instance.spin is true but {why}; a spinning worker needs a CPU of its own and one must stay free"


def _ranges(numbers):
    """{0, 1, 2, 5} as 0-2, 5."""
    texts, start, last = [], None, None
    for number in [*sorted(numbers), None]:
        if last is not None and number != last + 1:
            texts.append(str(start) if start == last else f"{start}-{last}")
            start = number
        start, last = number if start is None else start, number
    return ", ".join(texts)


def known_venue(name, cache={}):
    """The Venue of that name for questions about channels and endpoints, or None. Loaded once."""
    if name not in cache:
        cache[name] = venues.load(name, 1) if name in venues.names() else None
    return cache[name]


def _check_venue(name, entry, folder):
    found = known_venue(name)
    if found is None:
        yield ("venues", name), f"venues.{name} is not a venue{_mean(name, venues.names())}"
        return
    for table in ("urls", "urls_b", "limits"):
        for endpoint in _get(entry, table, dict):
            if endpoint not in found.profiles:
                yield ("venues", name, table, endpoint), (f"venues.{name}.{table}.{endpoint} is not an endpoint of {name}"
                                                          f"{_mean(endpoint, found.profiles)}")
    for table, endpoint, url in [(table, *row) for table in ("urls", "urls_b") for row in _get(entry, table, dict).items()]:
        problem = address_problem(url, "wss", "ws")
        if problem:
            yield ("venues", name, table, endpoint), f"venues.{name}.{table}.{endpoint} is {shown(url)}, {problem}"
    yield from _check_sources(name, entry)
    rest = _get(entry, "rest", str)
    if rest and address_problem(rest, "https", "http"):
        yield ("venues", name, "rest"), f"venues.{name}.rest is {shown(rest)}, {address_problem(rest, 'https', 'http')}"
    ca_file = _get(entry, "ca_file", str)
    if ca_file and not os.access(os.path.join(folder, ca_file), os.R_OK):
        yield ("venues", name, "ca_file"), f"venues.{name}.ca_file is {shown(ca_file)}, which is not a readable file"


def _check_sources(name, entry):
    source, source_b = (_get(entry, key, str) for key in ("source", "source_b"))
    for key, text in (("source", source), ("source_b", source_b)):
        if text and not _usable_source(text):
            yield ("venues", name, key), f"venues.{name}.{key} is {shown(text)}, allowed is an IP address of this machine"
    if source_b and source in ("", source_b):
        yield ("venues", name, "source_b"), (f"venues.{name}.source_b is {shown(source_b)} and source {shown(source)}; "
                                             f"give both, and different ones, or leave source_b out")


def _usable_source(text):
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        return False
    return not (found.is_multicast or found.is_unspecified)


def address_problem(url, secure, plain):
    """"" or what is wrong: a plain address is taken on loopback only."""
    if not isinstance(url, str):
        return f"allowed is a {secure}:// address"
    try:
        parts = urllib.parse.urlsplit(url)
        parts.port  # the port is read late: 70000 is a ValueError here
    except ValueError as error:
        return f"which is no address ({error})"
    if parts.scheme == plain and parts.hostname and is_loopback(parts.hostname):
        return ""
    if parts.scheme == plain:
        return f"which is not encrypted; allowed is {secure}://, and {plain}:// on loopback only"
    return "" if parts.scheme == secure and parts.hostname else f"allowed is a {secure}:// address"


def is_loopback(host):
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


SAMPLES = ("BTCUSDT", "BTC-USDT", "BTC-USDT-SWAP", "BTC-USD-261225", "BTC-USD-261225-100000-C", "BTC/USD", "BTCUSD_PERP",
           "BTC-PERPETUAL", "BTC-25DEC26-100000-C", "btc_usd")
"""Symbols in the forms venues use: a channel none of them has is not the venue's."""


def check_subscribe(index, entry):
    where = ("subscribe", index)
    name = _get(entry, "venue", str)
    found = known_venue(name) if name else None
    if name and found is None:
        yield (*where, "venue"), f"subscribe[{index}].venue is {shown(name)}, which is not a venue{_mean(name, venues.names())}"
    symbols = [symbol for symbol in _get(entry, "symbols", list) if isinstance(symbol, str)]
    for at, symbol in enumerate(symbols):
        if not symbol or len(symbol) > 48 or not symbol.isprintable():
            yield (*where, "symbols", at), f"subscribe[{index}].symbols[{at}] is {shown(symbol)}, allowed are 1 to 48 printable characters"
        elif symbol in symbols[:at]:
            yield (*where, "symbols", at), f"subscribe[{index}].symbols[{at}] is {shown(symbol)}, which stands there twice"
    for at, text in enumerate(_get(entry, "channels", list)):
        said = channel_problem(found, text, symbols) if isinstance(text, str) else ""
        if said:
            yield (*where, "channels", at), f"subscribe[{index}].channels[{at}] is {shown(text)}: {said}"


def channel_problem(found, text, symbols=()):
    """"" or why a venue (None: any) has no such channel."""
    try:
        channel = Channel.parse(text)
    except VenueError as error:
        word = re.match(r"[A-Za-z_]*", text)[0]
        near = difflib.get_close_matches(word.lower(), CHANNELS, n=1)
        return str(error) + (f"; did you mean {near[0]}?" if near else "")
    said = []
    for symbol in (*symbols[:3], *SAMPLES) if found else ():
        try:
            found.stream(symbol, channel)
            return ""
        except VenueError as error:
            said.append(str(error).replace(repr(symbol), "this").replace(symbol, "an instrument"))
    return max(said, key=lambda text: (said.count(text), -len(text))) if said else ""


# -- lines of keys -------------------------------------------------------------------------------------------

class _Locator:
    """Walks a TOML text that parses, and notes the line of every key and array element."""

    def __init__(self, text):
        self.text, self.at, self.lines, self.counts = text, 0, {(): 1}, {}

    def note(self, path):
        self.lines.setdefault(tuple(path), self.text.count("\n", 0, self.at) + 1)

    def blank(self, newlines=True):
        """Skip spaces and comments, and line ends too if asked."""
        skip = re.compile(r"(?:[ \t\r\n]|#[^\n]*)*" if newlines else r"[ \t]*")
        self.at = skip.match(self.text, self.at).end()

    def peek(self):
        return self.text[self.at:self.at + 1]

    def key(self):
        """A dotted key, as a list."""
        parts = []
        while True:
            self.blank(newlines=False)
            if self.peek() in ('"', "'"):
                begin = self.at
                self.string()
                parts.append(next(iter(tomllib.loads(f"{self.text[begin:self.at]} = 0"))))
            else:
                bare = re.compile(r"[A-Za-z0-9_-]+").match(self.text, self.at)
                parts.append(bare[0])
                self.at = bare.end()
            self.blank(newlines=False)
            if self.peek() != ".":
                return parts
            self.at += 1

    def string(self):
        pattern = (r'"""(?:[^\\]|\\.)*?"{3,5}' if self.text.startswith('"""', self.at) else r"'''.*?'{3,5}"
                   if self.text.startswith("'''", self.at) else r'"(?:[^"\\]|\\.)*"' if self.peek() == '"' else r"'[^']*'")
        self.at = re.compile(pattern, re.DOTALL).match(self.text, self.at).end()

    def value(self, path):
        if self.peek() in ('"', "'"):
            self.string()
        elif self.peek() == "[":
            self.items(path)
        elif self.peek() == "{":
            self.inline(path)
        else:
            self.at = re.compile(r"[^,\]}#\n]*").match(self.text, self.at).end()

    def items(self, path):
        self.at += 1
        index = 0
        while True:
            self.blank()
            if self.peek() == "]":
                self.at += 1
                return
            self.note([*path, index])
            self.value([*path, index])
            self.blank()
            if self.peek() == ",":
                self.at += 1
            index += 1

    def inline(self, path):
        self.at += 1
        while True:
            self.blank()
            if self.peek() == "}":
                self.at += 1
                return
            self.pair(path)
            self.blank()
            if self.peek() == ",":
                self.at += 1

    def pair(self, table):
        begin = self.at
        path = [*table]
        for part in self.key():
            path.append(part)
            here, self.at = self.at, begin
            self.note(path)
            self.at = here
        self.at += 1  # "="
        self.blank(newlines=False)
        self.value(path)

    def header(self):
        """[table] or [[array]]; answers its path with indices."""
        many = self.text.startswith("[[", self.at)
        begin = self.at
        self.at += 2 if many else 1
        path = []
        parts = self.key()
        for index, part in enumerate(parts):
            path.append(part)
            here, self.at = self.at, begin
            self.note(path)
            if many and index == len(parts) - 1:
                self.counts[tuple(path)] = self.counts.get(tuple(path), -1) + 1
            if tuple(path) in self.counts:
                path.append(self.counts[tuple(path)])
                self.note(path)
            self.at = here
        self.at += 2 if many else 1
        return path

    def walk(self):
        table = []
        while True:
            self.blank()
            if self.at >= len(self.text):
                return self.lines
            if self.peek() == "[":
                table = self.header()
            else:
                self.pair(table)


def locate(text):
    """{key path: line} of a TOML text that parses; an array's elements have their index in the path."""
    return _Locator(text).walk()


# -- showing -------------------------------------------------------------------------------------------------

def schema():
    """JSON schema of the configuration, ranges and sentences included."""
    return Config.model_json_schema()


def resolved(config):
    """The configuration with every default filled in, as plain data."""
    return config.model_dump(mode="json", exclude_none=True)
