"""Book: ns a level change, the best of both sides read after each, on recorded level sequences.

Peers: sortedcontainers SortedDict with Decimal keys and values, as Python feed handlers keep books; order_book where it is
importable (it is GPL: measured when found, never a dependency). All must agree on the sum of the best prices.
"""
import collections
import decimal
import statistics
import time

from bench import build, common, frames

SEQUENCES = (  # what, recording, marker, venue
    ("Binance USD-M", "binance_usdm_2024.head", b"@depth", "binance-usdm"),
    ("OKX", "okx_2022.head", b'"channel":"books"', "okx"),
    ("Kraken", "kraken_spot_v2_derived.head", b'"channel":"book"', "kraken"),
)
LEVEL_MAX = 20_000
PYTHON_MAX = 4000   # changes given to the Python books: a pass stays below 20 ms
EXPONENT = -9       # frames.prepared() lists instruments at these digits


def run(quick=False):
    build.build()
    if frames.captures() is None:
        raise common.Unavailable("no recordings; set FEEDHANDLER_CAPTURES to a folder of NAME.tsv.gz")
    rows = []
    for what, recording, marker, venue_name in SEQUENCES:
        rows += _sequence_rows(what, _busiest(venue_name, recording, marker), 1 if quick else common.REPEATS)
    return rows


def _busiest(venue_name, recording, marker):
    """The changes of the instrument with the most of them, from its last snapshot with changes behind it on."""
    from bench import loops
    from feedhandler import venues
    venue = venues.load(venue_name, 1024)
    messages = frames.prepared(venue, frames.recorded(recording, marker))
    by_instrument = collections.defaultdict(list)
    for operation in loops.operations(venue, messages):
        if operation[0] != "clear":
            by_instrument[operation[0]].append(operation)
    return max(by_instrument.values(), key=len)


def _sequence_rows(what, operations, repeats):
    from bench import loops
    short = operations[:PYTHON_MAX]
    exact = [(side, decimal.Decimal(price).scaleb(EXPONENT), decimal.Decimal(size).scaleb(EXPONENT)) for _, side, price, size in short]
    expected = loops.book_pass(short, LEVEL_MAX, 1)[1]
    rows = []
    for name, book in _books().items():
        def peer():
            begin = time.thread_time_ns()
            digest = book(exact)
            ns = (time.thread_time_ns() - begin) / len(exact)
            assert int(digest.scaleb(-EXPONENT)) == expected, f"{name} and our book differ on {what}"
            return ns
        ours, reference, ratios = common.pairs(lambda: loops.book_pass(short, LEVEL_MAX, 20)[0], peer, repeats)
        rows.append(common.Row(f"book {what}, {len(short)} changes", "ns a level", ours, reference, name, statistics.median(ratios),
                               common.spread(ratios)))
    ours = statistics.median(loops.book_pass(operations, LEVEL_MAX, 5)[0] for _ in range(repeats))
    rows.append(common.Row(f"book {what}, all {len(operations)} changes", "ns a level", ours))
    return rows


def _books():
    """{name: function of operations that answers the sum of the best prices}."""
    books = {}
    try:
        from sortedcontainers import SortedDict
        books["SortedDict of Decimal"] = lambda operations: _sorted_dicts(SortedDict(), SortedDict(), operations)
    except ImportError:
        pass
    try:
        from order_book import OrderBook
        books["order_book, Decimal"] = lambda operations: _order_book(OrderBook(), operations)
    except ImportError:
        pass
    return books


def _sorted_dicts(bids, asks, operations):
    total = decimal.Decimal(0)
    for side, price, size in operations:
        levels = bids if side == 1 else asks
        if size:
            levels[price] = size
        else:
            levels.pop(price, None)
        if bids:
            total += bids.peekitem(-1)[0]
        if asks:
            total += asks.peekitem(0)[0]
    return total


def _order_book(book, operations):
    total = decimal.Decimal(0)
    bids, asks = book.bids, book.asks
    for side, price, size in operations:
        levels = bids if side == 1 else asks
        if size:
            levels[price] = size
        elif price in levels:
            del levels[price]
        if len(bids):
            total += bids.index(0)[0]
        if len(asks):
            total += asks.index(0)[0]
    return total
