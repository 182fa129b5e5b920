"""Binance: frames in, events out, for spot, USD-M and COIN-M; continuity, streams, control frames, instruments."""
import collections
import decimal
import fnmatch
import gzip
import itertools
import json
import os
import pathlib
import re

import pytest

from feedhandler.venue import Ack, Alive, Channel, Closing, Complaint, Stream, VenueError
from feedhandler.venues import binance_coinm, binance_spot, binance_usdm

D = decimal.Decimal
MS = 1_000_000
LAST, SNAPSHOT, TS_SUSPECT = 1, 2, 128
CAPTURES = pathlib.Path(os.environ.get("FEEDHANDLER_CAPTURES")
                        or pathlib.Path(__file__).resolve().parents[2] / "shared" / "captures")

INSTRUMENTS = {
    "spot": (binance_spot, ["BNBBTC", "BNBUSDT", "牛来USDT", "1000SATSUSDT"]),
    "usdm": (binance_usdm, ["BTCUSDT", "ETHUSDT"]),
    "coinm": (binance_coinm, ["BTCUSD_PERP", "BTCUSD_201225"]),
}


def venue(family, price_exponent=-8, size_exponent=-8):
    module, symbols = INSTRUMENTS[family]
    made = module.VENUE(64)
    for index, symbol in enumerate(symbols):
        made.add_instrument(index, symbol, price_exponent, size_exponent)
    return made


def text(message):
    return json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode()


def wrap(stream, data):
    return {"stream": stream, "data": data}


def level(side, price, size):
    return side, D(price), D(size)


TRADE = {"e": "trade", "E": 1672515782136, "s": "BNBBTC", "t": 12345, "p": "0.001", "q": "100", "T": 1672515782135,
         "m": True, "M": True}
AGG_TRADE = {"e": "aggTrade", "E": 1633998288468, "s": "BNBBTC", "a": 425085, "p": "13.80480000", "q": "2.10000000",
             "f": 439577, "l": 439579, "T": 1633998288467, "m": False, "M": True}
QUOTE = {"u": 400900217, "s": "BNBUSDT", "b": "25.35190000", "B": "31.21000000", "a": "25.36520000", "A": "40.66000000"}
DEPTH = {"e": "depthUpdate", "E": 1633998512068, "s": "BNBUSDT", "U": 157, "u": 160,
         "b": [["0.3513", "6195"], ["0.3475", "0"]], "a": [["0.36", "1.5"]]}
WINDOW = {"lastUpdateId": 160, "bids": [["0.0024", "10"]], "asks": [["0.0026", "100"], ["0.0027", "3"]]}
KLINE = {"e": "kline", "E": 1633998523963, "s": "BNBUSDT", "k": {
    "t": 1633998480000, "T": 1633998539999, "s": "BNBUSDT", "i": "1m", "f": 19862761, "L": 19862790, "o": "0.35270000",
    "c": "0.35290000", "h": "0.35300000", "l": "0.35220000", "v": "25877.00000000", "n": 30, "x": False,
    "q": "9116.04600000", "V": "58.00000000", "Q": "20.46240000", "B": "0"}}
TICKER = {"e": "24hrTicker", "E": 123456789000, "s": "BNBBTC", "p": "0.0015", "P": "250.00", "w": "0.0018", "x": "0.0009",
          "c": "0.0025", "Q": "10", "b": "0.0024", "B": "10", "a": "0.0026", "A": "100", "o": "0.0010", "h": "0.0026",
          "l": "0.0009", "v": "10000", "q": "18", "O": 0, "C": 86400000, "F": 0, "L": 18150, "n": 18151}
MINI = {"e": "24hrMiniTicker", "E": 123456789000, "s": "BNBBTC", "c": "0.0025", "o": "0.0010", "h": "0.0026",
        "l": "0.0009", "v": "10000", "q": "18"}
F_TRADE = {"e": "trade", "E": 1723161256561, "T": 1723161256560, "s": "ETHUSDT", "t": 4308068523, "p": "2681.62",
           "q": "1.000", "X": "MARKET", "m": False, "st": 1}
F_QUOTE = {"e": "bookTicker", "u": 11139947831981, "s": "ETHUSDT", "ps": "ETHUSDT", "b": "1943.64", "B": "113.445",
           "a": "1943.65", "A": "182.433", "T": 1785121247583, "E": 1785121247584, "st": 1}
F_DEPTH = {"e": "depthUpdate", "E": 1626992741037, "T": 1626992741024, "s": "ETHUSDT", "U": 600859599090,
           "u": 600859600917, "pu": 600859598061, "b": [["7.5040", "813"]], "a": [["7.6150", "0"], ["7.6220", "3284"]]}
MARK = {"e": "markPriceUpdate", "E": 1562305380000, "s": "BTCUSDT", "p": "11794.15000000", "i": "11784.62659091",
        "P": "11784.25641265", "r": "-0.00038167", "T": 1562306400000}
FORCE = {"e": "forceOrder", "E": 1568014460893, "o": {"s": "BTCUSDT", "S": "SELL", "o": "LIMIT", "f": "IOC",
         "q": "0.014", "p": "9910", "ap": "9910", "X": "FILLED", "l": "0.014", "z": "0.014", "T": 1568014460890}}
C_MARK = {"e": "markPriceUpdate", "E": 1596095725000, "s": "BTCUSD_201225", "p": "10934.62615417",
          "P": "10962.17178236", "i": "10933.62615417", "r": "", "T": 0}


def event(kind, channel, instrument, ts_ms, sequence, flags=LAST, slot_count=1, **body):
    return {"kind": kind, "channel": channel, "instrument": instrument, "ts_event_ns": ts_ms * MS,
            "sequence": sequence, "flags": flags, "slot_count": slot_count, **body}


def book(instrument, ts_ms, first, last, prev, levels, flags=LAST, window=False):
    return event("book", "book", instrument, ts_ms, last, flags, first=first, last=last, prev=prev, checksum=None,
                 window=window, snapshot=bool(flags & SNAPSHOT), levels=levels)


F_LEVELS = [level("bid", "7.5040", "813"), level("ask", "7.6150", "0"), level("ask", "7.6220", "3284")]
TICKER_EVENT = {"last": D("0.0025"), "open": D("0.001"), "high": D("0.0026"), "low": D("0.0009"), "volume": D(10000),
                "quote_volume": 18.0}

CASES = {  # name: (family, message, events)
    "spot trade": ("spot", wrap("bnbbtc@trade", TRADE), [event(
        "trade", "trade", 0, 1672515782135, 12345, price=D("0.001"), size=D(100), trade_id=12345, aggressor="ask",
        aggregate=False, count=1)]),
    "spot aggTrade": ("spot", wrap("bnbbtc@aggTrade", AGG_TRADE), [event(
        "trade", "agg_trade", 0, 1633998288467, 425085, price=D("13.8048"), size=D("2.1"), trade_id=425085,
        aggressor="bid", aggregate=True, count=3)]),
    "spot bookTicker has no time": ("spot", wrap("bnbusdt@bookTicker", QUOTE), [event(
        "quote", "quote", 1, 0, 400900217, bid_price=D("25.3519"), bid_size=D("31.21"), ask_price=D("25.3652"),
        ask_size=D("40.66"))]),
    "spot depth": ("spot", wrap("bnbusdt@depth@100ms", DEPTH), [book(
        1, 1633998512068, 157, 160, None,
        [level("bid", "0.3513", "6195"), level("bid", "0.3475", "0"), level("ask", "0.36", "1.5")])]),
    "spot partial depth": ("spot", wrap("bnbbtc@depth20@100ms", WINDOW), [book(
        0, 0, None, 160, None, [level("bid", "0.0024", "10"), level("ask", "0.0026", "100"), level("ask", "0.0027", "3")],
        LAST | SNAPSHOT, True)]),
    "spot kline": ("spot", wrap("bnbusdt@kline_1m", KLINE), [event(
        "candle", "candle", 1, 1633998523963, 0, slot_count=2, open=D("0.3527"), high=D("0.353"), low=D("0.3522"),
        close=D("0.3529"), volume=D(25877), quote_volume=9116.046, start_ns=1633998480000 * MS, count=30,
        interval_s=60, closed=False)]),
    "spot ticker": ("spot", wrap("bnbbtc@ticker", TICKER), [event(
        "ticker", "ticker", 0, 123456789000, 0, slot_count=2, average=0.0018, count=18151, **TICKER_EVENT)]),
    "spot miniTicker": ("spot", wrap("bnbbtc@miniTicker", MINI), [event(
        "ticker", "ticker", 0, 123456789000, 0, slot_count=2, average=None, count=None, **TICKER_EVENT)]),
    "futures trade": ("usdm", wrap("ethusdt@trade", F_TRADE), [event(
        "trade", "trade", 1, 1723161256560, 4308068523, price=D("2681.62"), size=D(1), trade_id=4308068523,
        aggressor="bid", aggregate=False, count=1)]),
    "futures bookTicker": ("usdm", wrap("ethusdt@bookTicker", F_QUOTE), [event(
        "quote", "quote", 1, 1785121247583, 11139947831981, bid_price=D("1943.64"), bid_size=D("113.445"),
        ask_price=D("1943.65"), ask_size=D("182.433"))]),
    "futures depth": ("usdm", wrap("ethusdt@depth@0ms", F_DEPTH), [book(
        1, 1626992741024, 600859599090, 600859600917, 600859598061, F_LEVELS)]),
    "futures partial depth": ("usdm", wrap("ethusdt@depth20@100ms", F_DEPTH), [book(
        1, 1626992741024, 600859599090, 600859600917, 600859598061, F_LEVELS, LAST | SNAPSHOT, True)]),
    "futures mark price": ("usdm", wrap("btcusdt@markPrice@1s", MARK), [
        event("mark", "mark", 0, 1562305380000, 0, price=D("11794.15")),
        event("index", "index", 0, 1562305380000, 0, price=D("11784.62659091")),
        event("funding", "funding", 0, 1562305380000, 0, rate=D("-0.00038167"), predicted=None,
              next_ns=1562306400000 * MS, interval_s=0)]),
    "futures forceOrder": ("usdm", wrap("btcusdt@forceOrder", FORCE), [event(
        "liquidation", "liquidation", 0, 1568014460890, 0, price=D(9910), size=D("0.014"), order_id=0, side="ask")]),
    "all mark prices": ("coinm", wrap("!markPrice@arr@1s", [C_MARK, C_MARK | {"s": "BTCUSD_PERP", "i": None}]), [
        event("mark", "mark", 1, 1596095725000, 0, price=D("10934.62615417")),
        event("index", "index", 1, 1596095725000, 0, price=D("10933.62615417")),
        event("mark", "mark", 0, 1596095725000, 0, price=D("10934.62615417"))]),
}
WINDOW_NAMES = {"spot partial depth", "futures partial depth"}


@pytest.mark.parametrize("name", CASES)
def test_each_kind_becomes_exactly_its_events(name):
    family, message, events = CASES[name]
    seen = venue(family).inspect(text(message))
    assert seen == {"status": len(events), "error": "", "control": False, "ignored": 0, "unlisted": 0, "events": events}


@pytest.mark.parametrize("name", sorted(set(CASES) - WINDOW_NAMES))
def test_a_message_without_the_wrapper_means_the_same(name):
    family, message, events = CASES[name]
    assert venue(family).events(text(message["data"])) == events


@pytest.mark.parametrize("name", CASES)
def test_no_beginning_of_a_message_is_taken_for_a_message(name):
    family, message, _ = CASES[name]
    frame, decoder = text(message), venue(family)
    for size in range(len(frame)):
        seen = decoder.inspect(frame[:size], behind=frame[size:] + b'"}]' * 30)
        assert seen["error"] == "malformed" and seen["events"] == [], frame[:size]
    assert decoder.inspect(frame + b"}")["error"] == "malformed"


def spaced(value):
    return json.dumps(value, ensure_ascii=False, separators=(" ,\t", "\r\n: ")).replace("{", "{ ").replace("]", " ]").encode()


def turned(value, by):
    """The same value with the members of every object turned round by `by` places, or reversed (by -1)."""
    if isinstance(value, list):
        return [turned(element, by) for element in value]
    if not isinstance(value, dict):
        return value
    pairs = [(key, turned(member, by)) for key, member in value.items()]
    if by < 0:
        return dict(reversed(pairs))
    return dict(pairs[by % len(pairs):] + pairs[:by % len(pairs)])


UNKNOWN = {"st": 1, "ps": "BTCUSDT", "nq": "1.0", "zz": None, "Z": {"e": "trade", "b": [["1", "2"]]}, "YY": [[], {}, [1e5]],
           "W": True, "g": -1.5e-7, "longer than sixteen bytes": "\\\"é", "": 0, "d\\u0061": []}


def with_unknown(value, family):
    """Unknown keys of every JSON type at both ends of every object, and inside nested ones."""
    if isinstance(value, list):
        return [with_unknown(element, family) if isinstance(element, dict) else element for element in value]
    if not isinstance(value, dict):
        return value
    extra = {key: thing for key, thing in UNKNOWN.items() if key not in value}
    if family == "coinm":
        extra["st"] = 2
    half = dict(itertools.islice(extra.items(), 5))
    return half | {key: with_unknown(member, family) for key, member in value.items()} | extra


@pytest.mark.parametrize("name", CASES)
def test_order_of_keys_spaces_and_unknown_keys_change_nothing(name):
    family, message, events = CASES[name]
    decoder = venue(family)
    for by in (-1, *range(24)):
        assert decoder.events(text(turned(message, by))) == events, by
    assert decoder.events(spaced(message)) == events
    assert decoder.events(b" \n" + spaced(turned(message, -1)) + b"\t ") == events
    assert decoder.events(text(with_unknown(message, family))) == events
    assert decoder.events(spaced(turned(with_unknown(message, family), -1))) == events


def parts(message):
    """The objects whose keys matter, each with a function that puts a changed one back."""
    data = message["data"]
    if isinstance(data, list):
        return [(data[0], lambda changed: message | {"data": [changed, *data[1:]]})]
    inner = next((key for key in ("k", "o") if isinstance(data.get(key), dict)), None)
    found = [(data, lambda changed: message | {"data": changed})]
    if inner:
        found.append((data[inner], lambda changed: message | {"data": data | {inner: changed}}))
    return found


NEEDED = {  # of the event, and of the object inside it
    "spot trade": "s t p q m", "spot aggTrade": "s a p q f l m", "spot bookTicker has no time": "b B a A",
    "spot depth": "s U u b a", "spot partial depth": "bids asks", "spot kline": "s k | t i o h l c v q n",
    "spot ticker": "s c o h l v q w n", "spot miniTicker": "s c o h l v q", "futures trade": "s t p q m",
    "futures bookTicker": "s u b B a A", "futures depth": "s U u pu b a", "futures partial depth": "s U u pu b a",
    "futures mark price": "s p E T", "futures forceOrder": "o | s S p q T", "all mark prices": "s p E",
}


@pytest.mark.parametrize("name", CASES)
def test_a_missing_field_is_named_missing_and_leaves_nothing(name):
    family, message, _ = CASES[name]
    decoder = venue(family)
    for (members, put), needed in zip(parts(message), NEEDED[name].split("|"), strict=True):
        for key in needed.split():
            assert key in members
            seen = decoder.inspect(text(put({other: members[other] for other in members if other != key})))
            assert (seen["error"], seen["events"]) == ("missing", []), key


@pytest.mark.parametrize("name", CASES)
def test_a_key_that_comes_twice_is_malformed(name):
    family, message, _ = CASES[name]
    decoder = venue(family)
    for members, put in parts(message):
        for key in set(members) & set("eEsUuTbBaApqtmflkvchowin") | set(members) & {"pu", "bids", "asks", "lastUpdateId"}:
            frame = text(put({"TWICE": 0, **members}))
            twice = frame.replace(b'"TWICE":0', b'"%s":%s' % (key.encode(), text(members[key])))
            assert decoder.inspect(twice)["error"] == "malformed", key
    frame = text(message)
    assert decoder.inspect(b'{"data":{},' + frame[1:])["error"] == "malformed"
    assert decoder.inspect(b'{"stream":"",' + frame[1:])["error"] == "malformed"


@pytest.mark.parametrize("family,message,key,values", [
    ("spot", TRADE, "p", ["x", "", "1.", ".5", "1e", "--1", True, None, [], {}]),
    ("spot", TRADE, "m", ["true", 1, None, "false"]),
    ("spot", QUOTE, "B", ["1,0", "0x1", "1 ", None]),
    ("spot", DEPTH, "U", ["x", None, {}]),
    ("usdm", F_TRADE, "T", ["x", None, []]),
    ("usdm", MARK, "i", ["x", {}]),
])
def test_a_field_of_the_wrong_shape_is_malformed(family, message, key, values):
    for value in values:
        assert venue(family).inspect(text(message | {key: value}))["error"] == "malformed", value


@pytest.mark.parametrize("message,change", [
    (TRADE, {"t": 1.5}), (TRADE, {"t": -1}), (AGG_TRADE, {"f": 439580}), (AGG_TRADE, {"f": 1, "l": 1 << 32}),
    (DEPTH, {"U": 161}), (KLINE, {"k": KLINE["k"] | {"i": "7x"}}), (KLINE, {"k": KLINE["k"] | {"n": 1 << 32}}),
])
def test_a_number_outside_its_field_is_out_of_range(message, change):
    assert venue("spot").inspect(text(message | change))["error"] == "range"
    assert venue("spot").inspect(text(message))["error"] == ""


def test_the_largest_values_that_fit_still_do():
    found = venue("spot").events(text(AGG_TRADE | {"f": 2, "l": 1 << 32}))[0]
    assert found["count"] == (1 << 32) - 1
    found = venue("spot").events(text(TRADE | {"t": (1 << 63) - 1, "p": "1e-8", "q": "92233720368.54775807"}))[0]
    assert (found["trade_id"], found["price"], found["size"]) == ((1 << 63) - 1, D("1e-8"), D("92233720368.54775807"))


def test_more_digits_than_the_exponent_holds_are_asked_for_or_flagged():
    decoder = venue("usdm", -2, -3)
    assert decoder.inspect(text(F_TRADE))["error"] == ""
    frame = text(F_TRADE | {"p": "2681.625"})
    assert decoder.inspect(frame)["error"] == "digits" and decoder.inspect(frame)["events"] == []
    flagged = decoder.inspect(frame, accept_inexact=True)["events"][0]
    assert (flagged["price"], flagged["flags"]) == (D("2681.62"), LAST | 32)
    assert decoder.inspect(text(F_DEPTH))["error"] == "digits"  # 7.5040 fits, 7.6150 does not
    decoder.add_instrument(1, "ETHUSDT", -3, -3)
    assert decoder.events(frame)[0]["price"] == D("2681.625")


# -- the traps ----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("change", [{"X": "INSURANCE_FUND"}, {"X": "ADL"}, {"X": "NA"}, {"X": ""}, {"X": "market"},
                                    {"p": "0", "q": "0"}, {"p": "0.00"}])
def test_futures_frames_that_are_no_trade_are_ignored_and_counted(change):
    seen = venue("usdm").inspect(text(wrap("ethusdt@trade", F_TRADE | change)))
    assert (seen["status"], seen["ignored"], seen["events"]) == (0, 1, [])


def test_mixed_lists_are_filtered_by_family():
    rows = [MARK | {"st": 1}, MARK | {"st": 2}, MARK, C_MARK | {"st": 2}]
    seen = venue("usdm").inspect(text(wrap("!markPrice@arr", rows)))
    assert (len(seen["events"]), seen["ignored"], seen["unlisted"]) == (6, 2, 0)
    seen = venue("coinm").inspect(text(rows))
    assert (len(seen["events"]), seen["ignored"], seen["unlisted"]) == (2, 1, 2)
    for place in (FORCE | {"st": 2}, FORCE | {"o": FORCE["o"] | {"st": 2}}):
        assert venue("usdm").inspect(text(place))["ignored"] == 1
    assert venue("usdm").inspect(text(wrap("!forceOrder@arr", FORCE | {"st": 1})))["status"] == 1


def test_a_list_with_one_broken_element_yields_nothing():
    for broken, error in ((MARK | {"p": "x"}, "malformed"), ({"e": "assetIndexUpdate"}, "unknown"), (7, "unknown")):
        seen = venue("usdm").inspect(text([MARK, broken]))
        assert (seen["error"], seen["events"]) == (error, [])
    assert venue("usdm").inspect(b"[]")["status"] == 0


def test_all_market_quotes_and_tickers_are_single_events_each():
    seen = venue("usdm").events(text(wrap("!bookTicker", F_QUOTE)))
    assert [found["kind"] for found in seen] == ["quote"]
    minis = [MINI | {"s": symbol} for symbol in ("BNBBTC", "BNBUSDT", "NOSUCH")]
    seen = venue("spot").inspect(text(wrap("!miniTicker@arr", minis)))
    assert ([found["instrument"] for found in seen["events"]], seen["unlisted"]) == ([0, 1], 1)


def test_symbols_beyond_ascii_and_symbols_of_digits_are_found():
    decoder = venue("spot")
    assert decoder.events(text(QUOTE | {"s": "牛来USDT"}))[0]["instrument"] == 2
    assert decoder.events(text(QUOTE | {"s": "1000SATSUSDT"}))[0]["instrument"] == 3
    assert decoder.events(text(wrap("牛来usdt@depth5", WINDOW)))[0]["instrument"] == 2
    name = decoder.stream("牛来USDT", Channel("book", 5))
    assert name.wire == "牛来usdt@depth5@100ms"
    assert decoder.subscribe("spot.json", [name], 1)[0][1] == '{"method":"SUBSCRIBE","params":["牛来usdt@depth5@100ms"],"id":1}'


@pytest.mark.parametrize("symbol", ["NOSUCH", "", "bnbbtc", "X" * 48, "X" * 49, "X" * 300])
def test_a_symbol_nobody_listed_is_counted_and_leaves_nothing(symbol):
    decoder = venue("spot")
    for message in (TRADE, AGG_TRADE, QUOTE, DEPTH, KLINE, TICKER, MINI):
        seen = decoder.inspect(text(message | {"s": symbol}))
        assert (seen["status"], seen["unlisted"], seen["events"]) == (0, 1, [])
    if symbol != "bnbbtc":
        seen = decoder.inspect(text(wrap(symbol + "@depth5", WINDOW)))
        assert (seen["status"], seen["unlisted"]) == (0, 1)


def test_partial_depth_needs_the_name_of_its_stream():
    decoder = venue("spot")
    for stream in ("bnbbtc@depth", "bnbbtc@depth@100ms", "bnbbtc", "@", "bnbbtc@dept5"):
        assert decoder.inspect(text(wrap(stream, WINDOW)))["error"] == "unknown", stream
    assert decoder.inspect(text(WINDOW))["error"] == "unknown"
    assert decoder.events(text({"data": WINDOW, "stream": "bnbbtc@depth10"}))[0]["window"]


def test_levels_stand_bids_first_and_an_empty_side_is_a_side():
    decoder = venue("spot")
    swapped = {"a": DEPTH["a"]} | {key: DEPTH[key] for key in DEPTH if key != "a"}
    assert decoder.events(text(swapped)) == decoder.events(text(DEPTH))
    assert decoder.events(text(DEPTH | {"b": []}))[0]["levels"] == [level("ask", "0.36", "1.5")]
    assert decoder.events(text(DEPTH | {"b": [], "a": []}))[0]["levels"] == []
    for rows in ([["1"]], [[]], [1], [["1", "x"]], {"0": 1}):
        assert decoder.inspect(text(DEPTH | {"a": rows}))["status"] < 0, rows
        assert decoder.inspect(text({"a": rows} | DEPTH | {"a": rows}))["status"] < 0, rows


def test_an_empty_side_of_a_quote_is_undefined():
    found = venue("spot").events(text(QUOTE | {"b": "0.00000000", "B": "0.00000000"}))[0]
    assert (found["bid_price"], found["bid_size"], found["ask_price"]) == (None, D(0), D("25.3652"))


@pytest.mark.parametrize("change,ts_ms,flags", [
    ({}, 1723161256560, LAST), ({"T": 0}, 0, LAST | TS_SUSPECT), ({"T": 1 << 62}, 0, LAST | TS_SUSPECT),
    ({"E": 1}, 1723161256560, LAST)])
def test_an_absurd_time_is_absent_and_said_so(change, ts_ms, flags):
    found = venue("usdm").events(text(F_TRADE | change))[0]
    assert (found["ts_event_ns"], found["flags"]) == (ts_ms * MS, flags)


def test_time_falls_back_to_the_sending_host():
    message = {key: F_TRADE[key] for key in F_TRADE if key != "T"}
    assert venue("usdm").events(text(message))[0]["ts_event_ns"] == 1723161256561 * MS
    del message["E"]
    found = venue("usdm").events(text(message))[0]
    assert (found["ts_event_ns"], found["flags"]) == (0, LAST | TS_SUSPECT)


def test_intervals_of_candles_are_seconds():
    seconds = {"1s": 1, "15m": 900, "12h": 43200, "3d": 259200, "1w": 604800, "1M": 2592000}
    for interval, expected in seconds.items():
        message = KLINE | {"k": KLINE["k"] | {"i": interval}}
        assert venue("spot").events(text(message))[0]["interval_s"] == expected


# -- what is no data ----------------------------------------------------------------------------------------------

CONTROL = [
    (b'{"result":null,"id":1}', Ack(1)),
    (b'{"id":7,"result":["btcusdt@trade"]}', Ack(7)),
    (b'{"code":2,"msg":"Invalid request: too many parameters","id":3}',
     Ack(3, accepted=False, reason="2: Invalid request: too many parameters")),
    (b'{"error":{"code":2,"msg":"unknown property"},"id":4}', Ack(4, accepted=False, reason="2: unknown property")),
    (b'{"code":3,"msg":"Invalid JSON: expected value at line 1 column 1"}',
     Complaint("3", "Invalid JSON: expected value at line 1 column 1")),
    (b'{"error":{"code":3,"msg":"Invalid JSON"},"id":null}', Complaint("3", "Invalid JSON")),
    (b'{"e":"serverShutdown","E":1770123456789}', Closing("serverShutdown: the venue will close this connection")),
    (b'{"stream":"!serverShutdown","data":{"e":"serverShutdown","E":1770123456789}}',
     Closing("serverShutdown: the venue will close this connection")),
    (b'{"e":"contractInfo","E":1669647330579,"s":"IOTAUSDT","ps":"IOTAUSDT","ct":"PERPETUAL","dt":4133404800000,'
     b'"ot":1569398400000,"cs":"TRADING","bks":[{"bs":1,"bnf":0,"bnc":5000,"mmr":0.01,"cf":0,"mi":21,"ma":50}]}', Alive()),
]


@pytest.mark.parametrize("frame,meaning", CONTROL)
def test_answers_and_notices_go_to_the_control_plane(frame, meaning):
    for family in INSTRUMENTS:
        decoder = venue(family)
        seen = decoder.inspect(frame)
        assert (seen["status"], seen["control"], seen["events"]) == (0, True, [])
        assert decoder.control(frame) == [meaning]


def test_control_frames_that_are_none_are_complained_about():
    assert venue("spot").control(b'{"id":1')[0].code == "malformed"
    assert venue("spot").control(b"[1]")[0].code == "unknown"


@pytest.mark.parametrize("frame", [
    b"{}", b'{"e":"avgPrice","s":"BNBBTC"}', b'{"e":7}', b'{"stream":"x","data":5}', b'{"e":"tradE","s":"BNBBTC"}',
    b'{"stream":"x@bookTicker","data":{}}', b'{"e":"24hrTicke"}', b"[[]]", b'{"e":{"id":1}}'])
def test_an_event_nobody_knows_is_unknown(frame):
    for family in INSTRUMENTS:
        assert venue(family).inspect(frame)["error"] == "unknown"


@pytest.mark.parametrize("frame", [b"", b" ", b"ping", b"7", b'"x"', b"null", b"{", b'{"e"}', b"{,}", b'{"a":[[,]]}',
                                   b'{"s":"a\nb"}', b'{"e":"trade",}', b'{,"e":1}', b'{"t":01}', b"\xff\xfe"])
def test_what_is_no_message_is_malformed(frame):
    assert venue("spot").inspect(frame, behind=b'"}' * 40)["error"] == "malformed"


def test_a_wrapper_without_data_lacks_it():
    assert venue("spot").inspect(b'{"stream":"bnbbtc@trade"}')["error"] == "missing"


def test_nesting_without_end_is_refused():
    deep = b'{"z":' * 40 + b"1" + b"}" * 40
    assert venue("spot").inspect(deep)["error"] == "depth"


# -- snapshots and continuity -------------------------------------------------------------------------------------

def test_a_rest_snapshot_is_one_book_event():
    seen = venue("spot").inspect_snapshot(text(WINDOW), 1)
    assert seen["events"] == [book(1, 0, None, 160, None, [level("bid", "0.0024", "10"), level("ask", "0.0026", "100"),
                                                           level("ask", "0.0027", "3")], LAST | SNAPSHOT)]
    timed = {"asks": WINDOW["asks"], "E": 2000, "T": 1000, "bids": WINDOW["bids"], "lastUpdateId": 160, "z": [{}]}
    found = venue("usdm").inspect_snapshot(text(timed), 0)["events"][0]
    assert (found["ts_event_ns"], found["levels"]) == (1000 * MS, seen["events"][0]["levels"])


def test_a_snapshot_that_is_cut_or_refused_is_none():
    frame = text(WINDOW)
    for size in range(len(frame)):
        seen = venue("spot").inspect_snapshot(frame[:size], 1, behind=frame[size:] + b"}" * 70)
        assert (seen["error"], seen["events"]) == ("malformed", [])
    for body in (b'{"code":-1121,"msg":"Invalid symbol."}', b"{}", b'{"lastUpdateId":1,"bids":[]}', b'{"bids":[],"asks":[]}'):
        assert venue("spot").inspect_snapshot(body, 1)["error"] == "missing"
    assert venue("spot").inspect_snapshot(b"<html>", 1)["error"] == "malformed"


def change(first, last, prev=None):
    return {"flags": LAST, "sequence": last, "first": first, "last": last, "prev": prev, "window": False}


SNAP = {"flags": LAST | SNAPSHOT, "sequence": 100, "first": None, "last": 100, "prev": None, "window": False}


def test_a_snapshot_seeds_and_a_window_is_live_at_once():
    for family in INSTRUMENTS:
        for state, last in (("waiting", 0), ("seeded", 7), ("live", 999)):
            assert venue(family).chain_step(state, last, SNAP) == ("apply", "seeded", 100)
            assert venue(family).chain_step(state, last, SNAP | {"window": True}) == ("apply", "live", 100)


@pytest.mark.parametrize("state,first,last,verdict", [
    ("seeded", 90, 99, "old"), ("seeded", 90, 100, "old"),        # ends at or before the snapshot
    ("seeded", 101, 105, "apply"), ("seeded", 101, 101, "apply"), # U = L + 1: the snapshot ended between two changes
    ("seeded", 100, 105, "apply"), ("seeded", 90, 101, "apply"),  # the snapshot lies inside
    ("seeded", 102, 105, "ahead"),                                # the snapshot is older than what we were sent
    ("live", 101, 105, "apply"), ("live", 102, 105, "gap"), ("live", 99, 100, "old"), ("live", 50, 60, "old"),
    ("live", 100, 105, "apply"),                                  # overlaps: absolute sizes make it right
])
def test_spot_changes_chain_by_first_and_last(state, first, last, verdict):
    expected = ("apply", "live", last) if verdict == "apply" else (verdict, state, 100)
    assert venue("spot").chain_step(state, 100, change(first, last)) == expected


@pytest.mark.parametrize("family", ["usdm", "coinm"])
@pytest.mark.parametrize("state,first,last,prev,verdict", [
    ("seeded", 90, 99, 80, "old"), ("seeded", 90, 100, 80, "apply"), ("seeded", 90, 105, 80, "apply"),
    ("seeded", 100, 100, 99, "apply"), ("seeded", 101, 105, 100, "apply"), ("seeded", 104, 105, 100, "apply"),
    ("seeded", 102, 105, 101, "ahead"),
    ("live", 104, 105, 100, "apply"), ("live", 101, 105, 100, "apply"),  # U is not last u + 1, and need not be
    ("live", 101, 105, 101, "gap"), ("live", 101, 105, 99, "gap"), ("live", 90, 100, 80, "old"), ("live", 80, 90, 70, "old"),
])
def test_futures_changes_chain_by_pu_alone(family, state, first, last, prev, verdict):
    expected = ("apply", "live", last) if verdict == "apply" else (verdict, state, 100)
    assert venue(family).chain_step(state, 100, change(first, last, prev)) == expected


# -- streams ------------------------------------------------------------------------------------------------------

STREAMS = [
    ("spot", "trade", "spot.json", "bnbbtc@trade"), ("spot", "agg_trade", "spot.json", "bnbbtc@aggTrade"),
    ("spot", "quote", "spot.json", "bnbbtc@bookTicker"), ("spot", "book", "spot.json", "bnbbtc@depth@100ms"),
    ("spot", "book@100ms", "spot.json", "bnbbtc@depth@100ms"), ("spot", "book@1000ms", "spot.json", "bnbbtc@depth"),
    ("spot", "book20", "spot.json", "bnbbtc@depth20@100ms"), ("spot", "book5@1000ms", "spot.json", "bnbbtc@depth5"),
    ("spot", "candle@1s", "spot.json", "bnbbtc@kline_1s"), ("spot", "candle", "spot.json", "bnbbtc@kline_1m"),
    ("spot", "ticker", "spot.json", "bnbbtc@ticker"),
    ("usdm", "trade", "usdm.public", "bnbbtc@trade"), ("usdm", "quote", "usdm.public", "bnbbtc@bookTicker"),
    ("usdm", "book", "usdm.public", "bnbbtc@depth@100ms"), ("usdm", "book@0ms", "usdm.public", "bnbbtc@depth@0ms"),
    ("usdm", "book@250ms", "usdm.public", "bnbbtc@depth"), ("usdm", "book10@500ms", "usdm.public", "bnbbtc@depth10@500ms"),
    ("usdm", "agg_trade", "usdm.market", "bnbbtc@aggTrade"), ("usdm", "candle@4h", "usdm.market", "bnbbtc@kline_4h"),
    ("usdm", "ticker", "usdm.market", "bnbbtc@ticker"), ("usdm", "mark", "usdm.market", "bnbbtc@markPrice@1s"),
    ("usdm", "index", "usdm.market", "bnbbtc@markPrice@1s"), ("usdm", "funding@3s", "usdm.market", "bnbbtc@markPrice"),
    ("usdm", "liquidation", "usdm.market", "bnbbtc@forceOrder"), ("usdm", "instrument", "usdm.market", "!contractInfo"),
    ("coinm", "trade", "coinm", "bnbbtc@trade"), ("coinm", "mark", "coinm", "bnbbtc@markPrice@1s"),
    ("coinm", "book@0ms", "coinm", "bnbbtc@depth@0ms"),
]


@pytest.mark.parametrize("family,channel,endpoint,wire", STREAMS)
def test_a_channel_names_its_stream_and_route(family, channel, endpoint, wire):
    found = venue(family).stream("BNBBTC", Channel.parse(channel))
    assert (found.endpoint, found.wire) == (endpoint, wire)
    assert found.endpoint in venue(family).profiles and found.endpoint in venue(family).urls


def test_mark_index_and_funding_share_one_stream_so_it_is_subscribed_once():
    found = {venue("usdm").stream("BTCUSDT", Channel(name)) for name in ("mark", "index", "funding")}
    assert found == {Stream("usdm.market", "btcusdt@markPrice@1s", "BTCUSDT", "mark", first_data_s=30.0)}


def test_a_book_says_how_it_starts_and_how_deep_it_is():
    spot = venue("spot")
    assert (spot.stream("BNBBTC", Channel("book")).snapshot, spot.stream("BNBBTC", Channel("book")).depth) == ("rest", 0)
    window = spot.stream("BNBBTC", Channel("book", 10))
    assert (window.snapshot, window.depth) == ("window", 10)


def test_all_market_streams_exist_where_the_venue_has_them():
    names = {channel: venue("usdm").stream("", Channel(channel)).wire for channel in ("quote", "mark", "liquidation", "ticker")}
    assert names == {"quote": "!bookTicker", "mark": "!markPrice@arr@1s", "liquidation": "!forceOrder@arr",
                     "ticker": "!ticker@arr"}
    with pytest.raises(VenueError, match="symbol is needed"):
        venue("usdm").stream("", Channel("trade"))


@pytest.mark.parametrize("family,channel,message", [
    ("spot", "book@250ms", "book has no speed 250ms; use 100ms, 1000ms"), ("spot", "book7", "use 5, 10, 20"),
    ("usdm", "book@1000ms", "use 100ms, 250ms, 500ms, 0ms"), ("usdm", "book20@0ms", "use 100ms, 250ms, 500ms"),
    ("spot", "mark", "use binance-usdm or binance-coinm"), ("spot", "candle@7m", "candle has no interval 7m"),
    ("usdm", "candle@1s", "candle has no interval 1s"), ("spot", "open_interest", "REST only"),
    ("usdm", "open_interest", "REST only"), ("usdm", "greeks", "no options"), ("spot", "greeks", "no options"),
    ("spot", "instrument", "exchangeInfo"), ("spot", "trade@100ms", "neither depth nor speed"),
    ("usdm", "quote5", "neither depth nor speed"), ("usdm", "mark@2s", "use 1s, 3s"), ("spot", "candle5@1m", "no depth"),
])
def test_a_channel_the_venue_lacks_is_refused_with_what_exists(family, channel, message):
    with pytest.raises(VenueError, match=message):
        venue(family).stream("BNBBTC", Channel.parse(channel))


def test_usdm_routes_deliver_what_is_planned_on_them():
    profiles = venue("usdm").profiles
    for family, channel, endpoint, wire in STREAMS:
        if family != "usdm":
            continue
        for name, profile in profiles.items():
            rules = [rule["delivered"] for rule in profile["routing"] if fnmatch.fnmatch(wire, rule["channel_glob"])]
            assert bool(rules) and all(rules) is (name == endpoint), (name, wire)


def test_subscriptions_are_split_and_numbered():
    spot = venue("spot")
    streams = [Stream("spot.json", f"s{index}@trade", f"S{index}", "trade") for index in range(201)]
    messages = spot.subscribe("spot.json", streams, 5)
    assert [(number, len(part)) for number, _, part in messages] == [(5, 100), (6, 100), (7, 1)]
    assert [name for _, frame, _ in messages for name in json.loads(frame)["params"]] == [stream.wire for stream in streams]
    assert [json.loads(frame)["id"] for _, frame, _ in messages] == [5, 6, 7]
    assert json.loads(spot.unsubscribe("spot.json", streams[:1], 9)[0][1]) == {
        "method": "UNSUBSCRIBE", "params": ["s0@trade"], "id": 9}
    assert spot.subscribe("spot.json", [], 1) == [] and spot.on_open("spot.json") == [] and spot.ping("spot.json", 1) is None


@pytest.mark.parametrize("family,depth,path,weight", [
    ("spot", 0, "/api/v3/depth?symbol=BNBBTC&limit=5000", 250), ("spot", 100, "/api/v3/depth?symbol=BNBBTC&limit=100", 5),
    ("spot", 101, "/api/v3/depth?symbol=BNBBTC&limit=500", 25), ("spot", 9999, "/api/v3/depth?symbol=BNBBTC&limit=5000", 250),
    ("usdm", 0, "/fapi/v1/depth?symbol=BNBBTC&limit=1000", 20), ("usdm", 50, "/fapi/v1/depth?symbol=BNBBTC&limit=50", 2),
    ("coinm", 500, "/dapi/v1/depth?symbol=BNBBTC&limit=500", 10)])
def test_a_snapshot_request_is_as_small_as_the_depth_allows(family, depth, path, weight):
    request = venue(family).snapshot_request("BNBBTC", depth)
    assert (request.path, request.weight) == (path, weight)


def test_a_snapshot_request_quotes_its_symbol():
    assert venue("spot").snapshot_request("牛来USDT", 0).path.startswith("/api/v3/depth?symbol=%E7%89%9B%E6%9D%A5USDT&")


# -- instruments --------------------------------------------------------------------------------------------------

FILTERS = [{"filterType": "PRICE_FILTER", "tickSize": "0.10"}, {"filterType": "LOT_SIZE", "stepSize": "1"},
           {"filterType": "MARKET_LOT_SIZE", "stepSize": "7"}]


def test_spot_instruments_are_listed_with_their_steps():
    body = text({"symbols": [
        {"symbol": "BTCUSDT", "status": "TRADING", "baseAsset": "BTC", "quoteAsset": "USDT", "filters": [
            {"filterType": "LOT_SIZE", "stepSize": "0.00001000"}, {"filterType": "PRICE_FILTER", "tickSize": "0.01000000"}]},
        {"symbol": "OLDBTC", "status": "BREAK", "baseAsset": "OLD", "quoteAsset": "BTC", "quotePrecision": 8, "filters": [
            {"filterType": "PRICE_FILTER", "tickSize": "0.00000000"}, {"filterType": "LOT_SIZE", "stepSize": "10.00000000"}]}]})
    first, second = venue("spot").instruments([body])
    assert (first.symbol, first.canonical, first.kind, first.tick, first.lot, first.listed) == (
        "BTCUSDT", "BTC-USDT", "spot", "0.01", "0.00001", True)
    assert (second.tick, second.lot, second.listed) == ("0.00000001", "10", False)
    assert [request.path for request in venue("spot").instrument_requests()] == ["/api/v3/exchangeInfo"]


def test_inverse_contracts_have_a_size_and_an_expiry():
    row = {"symbol": "BTCUSD_PERP", "pair": "BTCUSD", "contractType": "PERPETUAL", "deliveryDate": 4133404800000,
           "contractStatus": "TRADING", "contractSize": 100, "baseAsset": "BTC", "quoteAsset": "USD", "filters": FILTERS}
    dated = row | {"symbol": "BTCUSD_261225", "contractType": "NEXT_QUARTER", "deliveryDate": 1798185600000}
    perpetual, future = venue("coinm").instruments([text({"symbols": [row, dated]})])
    assert (perpetual.canonical, perpetual.kind, perpetual.multiplier, perpetual.inverse, perpetual.expiry_ns) == (
        "BTC-USD-PERP", "perpetual", "100", True, 0)
    assert (future.canonical, future.kind, future.expiry_ns, future.tick) == (
        "BTC-USD-20261225", "future", 1798185600000 * MS, "0.1")


def test_a_body_that_is_no_list_is_refused_with_its_beginning():
    with pytest.raises(VenueError, match="no JSON"):
        venue("usdm").instruments([b"<html>busy"])
    with pytest.raises(VenueError, match="Way too many"):
        venue("usdm").instruments([b'{"code":-1003,"msg":"Way too many requests"}'])


def test_profiles_state_their_limits():
    for family in INSTRUMENTS:
        made = venue(family)
        assert set(made.profiles) == set(made.urls)
        for profile in made.profiles.values():
            assert profile["client_msg"]["pace_ms"] == 300 and profile["client_msg"]["counts_control_frames"]
            assert profile["sub"]["max_per_conn"] == 1024 and profile["sub"]["ack_means_data"] is False
            assert profile["lifetime"]["max_s"] == 86400 and profile["liveness"]["pong_echo_payload"]
    assert venue("spot").profiles["spot.json"]["conn"]["attempts"] == [{"n": 300, "per_s": 300, "scope": "ip"}]


# -- recorded traffic ---------------------------------------------------------------------------------------------

def capture(name):
    path = CAPTURES / f"{name}.tsv.gz"
    if not path.exists():
        pytest.skip(f"no recording {path}; set FEEDHANDLER_CAPTURES to the directory that holds it")
    with gzip.open(path, "rb") as lines:
        for line in lines:
            _, _, direction, payload = line.rstrip(b"\n").split(b"\t", 3)
            yield direction, payload


def listed(module, symbols):
    made = module.VENUE(4096)
    for index, symbol in enumerate(symbols):
        made.add_instrument(index, symbol, -8, -8)
    return made


def expected_values(data):
    """What the frame says, by Python's own JSON and Decimal."""
    if "b" in data and isinstance(data["b"], list):
        return [("bid", D(price), D(size)) for price, size in data["b"]] + [("ask", D(price), D(size)) for price, size in data["a"]]
    if "B" in data:
        return [D(data[key]) for key in "bBaA"] + [data["u"]]
    if "k" in data:
        return [D(data["k"][key]) for key in "ohlcv"] + [float(data["k"]["q"]), data["k"]["x"], data["k"]["t"] * MS, data["k"]["n"]]
    return [D(data["p"]), D(data["q"]), "ask" if data["m"] else "bid", data.get("a", data.get("t")), data["T"] * MS]


def test_a_candle_says_when_it_is_over():
    seen = [venue("spot").events(text(wrap("bnbusdt@kline_1m", KLINE | {"k": KLINE["k"] | {"x": over}})))[0] for over in (False, True)]
    assert [one["closed"] for one in seen] == [False, True] and [one["interval_s"] for one in seen] == [60, 60]


def decoded_values(found):
    names = {"book": ["levels"], "quote": ["bid_price", "bid_size", "ask_price", "ask_size", "sequence"],
             "candle": ["open", "high", "low", "close", "volume", "quote_volume", "closed", "start_ns", "count"],
             "trade": ["price", "size", "aggressor", "trade_id", "ts_event_ns"]}[found["kind"]]
    values = [found[name] for name in names]
    return values[0] if found["kind"] == "book" else values


RECORDINGS = [("binance_spot_2021", binance_spot), ("binance_us_2021", binance_spot), ("binance_usdm_2021", binance_usdm),
              ("binance_spot_2024.head", binance_spot), ("binance_usdm_2024.head", binance_usdm),
              ("binance_coinm_2024.head", binance_coinm)]
# Lines of each recording: reading them a second time with Python's JSON and Decimal takes 0.15 ms a line. All of them
# (FEEDHANDLER_CAPTURE_LINES=1000000) take 45 s.
LINES_MAX = int(os.environ.get("FEEDHANDLER_CAPTURE_LINES", 20000))


@pytest.mark.parametrize("name,module", RECORDINGS)
def test_every_recorded_frame_is_decoded_to_its_own_numbers_and_books_chain_without_a_gap(name, module):
    lines = list(itertools.islice(capture(name), LINES_MAX))
    frames = [payload for direction, payload in lines if direction == b"in"]
    symbols = sorted({symbol.decode() for symbol in set(re.findall(rb'"s":"([^"]+)"', b"\n".join(frames)))})
    decoder, chains, held = listed(module, symbols), {}, collections.defaultdict(list)
    kinds, verdicts = collections.Counter(), collections.Counter()
    for direction, payload in lines:
        queue, instrument = [], None
        if direction == b"in":
            seen = decoder.inspect(payload)
            assert (seen["status"], seen["ignored"], seen["unlisted"]) == (1, 0, 0), payload
            found = seen["events"][0]
            assert decoded_values(found) == expected_values(json.loads(payload)["data"]), payload
            kinds[found["kind"]] += 1
            if found["kind"] == "book":
                instrument, queue = found["instrument"], [found]
        elif direction == b"rest" and b"depth" in payload.split(b" ", 1)[0]:
            url, body = payload.decode().split(" ", 1)
            instrument = symbols.index(url.split("symbol=")[1].split("&")[0])
            snapshot = decoder.inspect_snapshot(body.encode(), instrument)["events"][0]
            chains[instrument] = decoder.chain_step("waiting", 0, snapshot)[1:]
            queue = held.pop(instrument, [])
        if instrument is not None and instrument not in chains:
            held[instrument] += queue
            continue
        for found in queue:
            verdict, *chains[instrument] = decoder.chain_step(*chains[instrument], found)
            verdicts[verdict] += 1
    assert sum(kinds.values()) == len(frames) and kinds["quote"]
    assert len(chains) == len(symbols) and not held and {state for state, _ in chains.values()} == {"live"}
    assert sum(verdicts.values()) == kinds["book"] and verdicts["gap"] == verdicts["ahead"] == 0


@pytest.mark.parametrize("name,module,kind", [
    ("binance_spot_2021", binance_spot, "spot"), ("binance_usdm_2021", binance_usdm, "perpetual")])
def test_recorded_instrument_lists_are_read_whole(name, module, kind):
    body = next(payload for direction, payload in capture(name) if b"exchangeInfo" in payload[:80]).split(b" ", 1)[1]
    found = module.VENUE(4096).instruments([body])
    rows = {row["symbol"]: row for row in json.loads(body)["symbols"]}
    assert len(found) == len(rows) and {instrument.symbol for instrument in found} == set(rows)
    for instrument in found:
        filters = {entry["filterType"]: entry for entry in rows[instrument.symbol]["filters"]}
        if D(filters["PRICE_FILTER"]["tickSize"]):
            assert D(instrument.tick) == D(filters["PRICE_FILTER"]["tickSize"])
        assert D(instrument.lot) > 0 and D(instrument.tick) > 0
        assert instrument.kind == kind or instrument.expiry_ns > 0
    assert len({instrument.canonical for instrument in found}) == len(found)
