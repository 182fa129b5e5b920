"""Decode: ns a message of our decoders beside orjson, msgspec (typed) and pysimdjson, on the same bytes, in turn.

The Python peers only build objects, without normalising; our decoders write exact mantissas, ids and times. Warm loops, then a
mixed stream, shuffled and cold (4 MiB touched before each message), because warm loops flatter every decoder.
"""
import random
import statistics
import time

from bench import build, common, frames

CLASSES = (  # what, recording, marker, venue, target
    ("best bid/ask, Binance USD-M", "binance_usdm_2024.head", b"@bookTicker", "binance-usdm", 100),
    ("trade, Binance USD-M", "binance_usdm_2024.head", b"@trade", "binance-usdm", 100),
    ("depth, Binance USD-M", "binance_usdm_2024.head", b"@depth", "binance-usdm", None),
    ("depth, Binance spot", "binance_spot_2024.head", b"@depth", "binance-spot", None),
    ("trade, OKX", "okx_2022.head", b'"channel":"trades"', "okx", 100),
    ("books, OKX", "okx_2022.head", b'"action":"update"', "okx", None),
    ("book, Kraken", "kraken_spot_v2_derived.head", b'"type":"update"', "kraken", None),
    ("ticker, Deribit", "deribit_2021.head", b'"ticker.', "deribit", None),
)
LEVEL_NS_MAX, MESSAGE_NS_MAX = 65, 100  # DESIGN: a depth message costs at most 100 ns and 65 ns a level, book included


def run(quick=False):
    build.build()
    if frames.captures() is None:
        raise common.Unavailable("no recordings; set FEEDHANDLER_CAPTURES to a folder of NAME.tsv.gz")
    repeats = 1 if quick else common.REPEATS
    rows, mixed = [], {}
    for what, recording, marker, venue_name, target in CLASSES:
        venue, messages = _prepared(venue_name, recording, marker)
        if not messages:
            rows.append(common.Row(what, "ns", float("nan"), note=f"no message of {recording} decodes"))
            continue
        mixed.setdefault(venue_name, []).extend(messages)
        rows += _class_rows(what, venue, messages, target, repeats)
    return rows + _mixed_rows(mixed, repeats)


def _prepared(venue_name, recording, marker):
    from feedhandler import venues
    venue = venues.load(venue_name, 1024)
    return venue, frames.prepared(venue, frames.recorded(recording, marker))


def _class_rows(what, venue, messages, target, repeats):
    from bench import loops
    block = loops.Frames(messages)
    rounds = max(1, 20_000 // len(messages))
    size = statistics.mean(map(len, messages))
    rows = []
    for name, peer in _peers(messages).items():
        ours, reference, ratios = common.pairs(lambda: loops.decode(venue, block, rounds)[0], peer, repeats)
        goal = {"orjson": 6.0, "msgspec typed": 3.0}.get(name)
        met = None if goal is None or target is None else statistics.median(ratios) >= goal
        rows.append(common.Row(f"decode {what} ({size:.0f} B)", "ns", ours, reference, name, statistics.median(ratios),
                               common.spread(ratios), f"≥{goal:.0f}×" if goal and target else "", met))
    if target:
        ours = statistics.median(loops.decode(venue, block, rounds)[0] for _ in range(repeats))
        rows.append(common.Row(f"decode {what}, alone", "ns", ours, target=f"≤{target} ns", met=ours <= target))
    else:
        samples = [loops.decode_book(venue, block, rounds) for _ in range(repeats)]
        ours = statistics.median(ns for ns, _ in samples)
        levels = samples[0][1]
        bound = MESSAGE_NS_MAX + LEVEL_NS_MAX * levels
        if levels:
            rows.append(common.Row(f"decode and book {what}, {levels:.1f} levels", "ns", ours, target=f"≤{bound:.0f} ns", met=ours <= bound))
    return rows


def _peers(messages):
    """{name: function that answers ns a message} of what is installed."""
    peers = {}
    sample = messages[:1500]

    def timed(function):
        def once():
            begin = time.thread_time_ns()
            for message in sample:
                function(message)
            return (time.thread_time_ns() - begin) / len(sample)
        return once
    try:
        import orjson
        peers["orjson"] = timed(orjson.loads)
    except ImportError:
        pass
    import msgspec
    decoder = msgspec.json.Decoder(_typed(messages[0]))
    peers["msgspec typed"] = timed(decoder.decode)
    try:
        import simdjson
        parser = simdjson.Parser()
        peers["pysimdjson lazy"] = timed(parser.parse)
    except ImportError:
        pass
    return peers


def _typed(message):
    """A msgspec type with the fields that a normaliser needs of this message, numbers left as text."""
    import msgspec
    number = str | float
    binance = msgspec.defstruct("Data", [(name, number | int | list[list[str]] | bool, msgspec.field(default=0)) for name in (
        "s", "E", "T", "u", "U", "pu", "b", "B", "a", "A", "p", "q", "t", "m")])
    if message.startswith(b'{"stream"'):
        return msgspec.defstruct("Wrapped", [("data", binance)])
    okx = msgspec.defstruct("Row", [(name, list[list[str]] | number, msgspec.field(default="")) for name in (
        "asks", "bids", "ts", "px", "sz", "side", "tradeId")])
    if b'"instId"' in message:
        return msgspec.defstruct("Okx", [("arg", dict[str, str]), ("data", list[okx])])
    level = msgspec.defstruct("Level", [("price", float), ("qty", float)])
    kraken = msgspec.defstruct("Book", [("symbol", str), ("bids", list[level], msgspec.field(default_factory=list)),
                                        ("asks", list[level], msgspec.field(default_factory=list)), ("checksum", int, 0)])
    if b'"qty"' in message:
        return msgspec.defstruct("Kraken", [("channel", str), ("data", list[kraken])])
    ticker = msgspec.defstruct("Ticker", [(name, float | str | None, msgspec.field(default=None)) for name in (
        "instrument_name", "timestamp", "last_price", "best_bid_price", "best_bid_amount", "best_ask_price", "best_ask_amount",
        "mark_price", "index_price", "open_interest", "mark_iv", "bid_iv", "ask_iv")])
    return msgspec.defstruct("Deribit", [("params", msgspec.defstruct("Params", [("channel", str), ("data", ticker)]))])


def _mixed_rows(mixed, repeats):
    """Shuffled and cold figures of each venue's classes together."""
    from bench import loops
    rows = []
    for venue_name, messages in mixed.items():
        from feedhandler import venues
        venue = venues.load(venue_name, 1024)
        shuffled = frames.prepared(venue, messages)
        random.Random(1).shuffle(shuffled)
        block = loops.Frames(shuffled)
        warm = statistics.median(loops.decode(venue, block, 3)[0] for _ in range(repeats))
        cold = sorted(loops.decode_cold(venue, loops.Frames(shuffled[:500])))
        rows.append(common.Row(f"decode {venue_name}, all classes shuffled", "ns", warm,
                               note=f"cold p50 {cold[len(cold) // 2]:,} ns, p99 {cold[len(cold) * 99 // 100]:,} ns"))
    return rows
