"""OKX: bytes of documented and recorded frames in, events out, and every rule of its sequence."""
import decimal
import gzip
import itertools
import json
import math
import os
import pathlib
import random
import zlib

import pytest

from feedhandler.venue import Ack, Alive, Channel, Closing, Complaint, VenueError
from feedhandler.venues import okx

D = decimal.Decimal
LAST, SNAPSHOT, INEXACT, TS_SUSPECT = 1, 2, 32, 128
CAPTURES = pathlib.Path(os.environ.get("FEEDHANDLER_CAPTURES",
                                       pathlib.Path(__file__).resolve().parents[1] / "../shared/captures"))


def venue(symbols=None):
    """A venue that knows these symbols: {name: (price exponent, size exponent)}, ids from 1 in order."""
    made = okx.VENUE(64)
    for id, (symbol, exponents) in enumerate((symbols or {"BTC-USDT": (-2, -8)}).items(), 1):
        made.add_instrument(id, symbol, *exponents)
    return made


def frame(channel, *rows, symbol="BTC-USDT", **more):
    return json.dumps({"arg": {"channel": channel, "instId": symbol}, **more, "data": list(rows)}).encode()


def text(value):
    return json.dumps(value, separators=(",", ":")).encode()


TRADE = {"instId": "BTC-USDT", "tradeId": "130639474", "px": "42219.9", "sz": "0.12060306", "side": "buy",
         "ts": "1630048897897", "count": "3"}
BBO = {"asks": [["111.06", "55154", "0", "2"]], "bids": [["111.05", "57745", "0", "2"]], "ts": "1670324386802",
       "seqId": 363996337}
BOOK = {"asks": [["8476.98", "415", "0", "13"], ["8477", "7", "0", "2"]], "bids": [["8476.97", "256", "0", "12"]],
        "ts": "1597026383085", "checksum": 0, "prevSeqId": -1, "seqId": 123456}
CHANGE = {"asks": [["8476.98", "415.5", "0", "13"]], "bids": [["8476.97", "0", "0", "0"]], "ts": "1597026383086",
          "checksum": 0, "prevSeqId": 123456, "seqId": 123457}
TICKER = {"instType": "SPOT", "instId": "BTC-USDT", "last": "9999.99", "lastSz": "0.1", "askPx": "9999.99", "askSz": "11",
          "bidPx": "8888.88", "bidSz": "5", "open24h": "9000", "high24h": "10000", "low24h": "8888.88",
          "volCcy24h": "2222.25", "vol24h": "2222.5", "sodUtc0": "2222", "sodUtc8": "2222", "ts": "1597026383085"}
MARK = {"instType": "SWAP", "instId": "BTC-USDT-SWAP", "markPx": "42310.6", "ts": "1630049139746"}
INDEX = {"instId": "BTC-USDT", "idxPx": "0.1", "high24h": "0.5", "low24h": "0.1", "open24h": "0.1", "ts": "1597026383085"}
FUNDING = {"fundingRate": "0.0001875391284828", "fundingTime": "1700726400000", "instId": "BTC-USDT-SWAP", "instType": "SWAP",
           "method": "next_period", "maxFundingRate": "0.00375", "minFundingRate": "-0.00375", "nextFundingRate": "-0.00025",
           "nextFundingTime": "1700755200000", "premium": "0.0001", "settFundingRate": "0.0001", "settState": "settled",
           "ts": "1700724675402"}
INTEREST = {"instId": "BTC-USDT-SWAP", "instType": "SWAP", "oi": "2216113.01", "oiCcy": "22161.1301", "oiUsd": "1939251795.54",
            "ts": "1743041250440"}
LIQUIDATION = {"details": [{"bkLoss": "0", "bkPx": "42000.1", "ccy": "", "posSide": "short", "side": "buy", "sz": "13",
                            "ts": "1692266434010"},
                           {"bkLoss": "0", "bkPx": "41999", "ccy": "", "posSide": "long", "side": "sell", "sz": "1.5",
                            "ts": "1692266434011"}],
               "instFamily": "BTC-USDT", "instId": "BTC-USDT-SWAP", "instType": "SWAP", "uly": "BTC-USDT"}
CANDLE = ["1629993600000", "42500", "48199.9", "41006.1", "41006.1", "3587.41204591", "166741046.22", "166741046.22", "0"]
SUMMARY = {"instType": "OPTION", "instId": "BTC-USD-241013-70000-P", "uly": "BTC-USD", "delta": "-1.1180902625",
           "gamma": "2.2361957091", "vega": "0.0000000001", "theta": "0.0000032334", "lever": "8.465", "markVol": "0.5",
           "bidVol": "0.25", "askVol": "", "realVol": "", "deltaBS": "-0.9999", "gammaBS": "0.00000001", "vegaBS": "0.125",
           "thetaBS": "28.2649", "fwdPx": "62604.698", "ts": "1728703155650"}
ALL = {"BTC-USDT": (-2, -8), "BTC-USDT-SWAP": (-2, -2), "BTC-USD-241013-70000-P": (-4, -1)}
FRAMES = {
    "trades": frame("trades", TRADE, TRADE | {"tradeId": "130639475", "side": "sell"}),
    "trades-all": frame("trades-all", TRADE),
    "bbo-tbt": frame("bbo-tbt", BBO),
    "books snapshot": frame("books", BOOK, action="snapshot"),
    "books update": frame("books", CHANGE, action="update"),
    "books5": frame("books5", {key: BOOK[key] for key in ("asks", "bids", "ts", "seqId")} | {"instId": "BTC-USDT"}),
    "tickers": frame("tickers", TICKER),
    "mark-price": frame("mark-price", MARK, symbol="BTC-USDT-SWAP"),
    "index-tickers": frame("index-tickers", INDEX),
    "funding-rate": frame("funding-rate", FUNDING, symbol="BTC-USDT-SWAP"),
    "open-interest": frame("open-interest", INTEREST, symbol="BTC-USDT-SWAP"),
    "liquidation-orders": text({"arg": {"channel": "liquidation-orders", "instType": "SWAP"}, "data": [LIQUIDATION]}),
    "candle1m": frame("candle1m", CANDLE),
    "opt-summary": text({"arg": {"channel": "opt-summary", "instFamily": "BTC-USD"}, "data": [SUMMARY]}),
}


def head(instrument, channel, ts_ms, sequence=0, slot_count=1, flags=LAST):
    return {"instrument": instrument, "channel": channel, "flags": flags, "ts_event_ns": ts_ms * 1_000_000,
            "sequence": sequence, "slot_count": slot_count}


def test_trades_carry_price_size_side_and_how_many_fills_were_merged():
    first, second = venue(ALL).events(FRAMES["trades"])
    assert first == head(1, "trade", 1630048897897, 130639474) | {
        "kind": "trade", "price": D("42219.9"), "size": D("0.12060306"), "trade_id": 130639474, "aggressor": "bid",
        "aggregate": True, "count": 3}
    assert second["trade_id"] == 130639475 and second["aggressor"] == "ask"


def test_a_trade_of_trades_all_is_one_fill():
    event, = venue(ALL).events(FRAMES["trades-all"])
    assert (event["aggregate"], event["count"], event["channel"]) == (False, 1, "trade")


def test_bbo_is_a_quote_with_the_venues_sequence():
    assert venue().events(FRAMES["bbo-tbt"]) == [head(1, "quote", 1670324386802, 363996337) | {
        "kind": "quote", "bid_price": D("111.05"), "bid_size": D(57745), "ask_price": D("111.06"), "ask_size": D(55154)}]


@pytest.mark.parametrize("side, price, size", [("bids", "bid_price", "bid_size"), ("asks", "ask_price", "ask_size")])
def test_an_empty_side_of_bbo_has_no_price(side, price, size):
    event, = venue().events(frame("bbo-tbt", BBO | {side: []}))
    assert event[price] is None and event[size] == 0
    assert sum(value is None for value in event.values()) == 1


BOOK_HEAD = {"kind": "book", "first": None, "checksum": None, "window": False}


def test_a_book_snapshot_has_all_levels_bids_first_with_order_counts():
    event, = venue().events(FRAMES["books snapshot"])
    assert event == head(1, "book", 1597026383085, 123456, flags=LAST | SNAPSHOT) | BOOK_HEAD | {
        "last": 123456, "prev": None, "snapshot": True,
        "levels": [("bid", D("8476.97"), D(256), 12), ("ask", D("8476.98"), D(415), 13), ("ask", D(8477), D(7), 2)]}


def test_a_book_change_names_its_predecessor_and_deletes_with_size_zero():
    event, = venue().events(FRAMES["books update"])
    assert event == head(1, "book", 1597026383086, 123457) | BOOK_HEAD | {
        "last": 123457, "prev": 123456, "snapshot": False,
        "levels": [("bid", D("8476.97"), 0), ("ask", D("8476.98"), D("415.5"), 13)]}


def test_books5_is_a_whole_window_each_time():
    event, = venue().events(FRAMES["books5"])
    assert (event["window"], event["snapshot"], event["prev"], event["last"]) == (True, True, None, 123456)
    assert len(event["levels"]) == 3


def test_ticker_has_24_hour_values_and_quote_volume_on_spot_only():
    spot, = venue().events(FRAMES["tickers"])
    assert spot == head(1, "ticker", 1597026383085, slot_count=2) | {
        "kind": "ticker", "last": D("9999.99"), "open": D(9000), "high": D(10000), "low": D("8888.88"), "volume": D("2222.5"),
        "quote_volume": 2222.25, "average": None, "count": 0}
    swap, = venue().events(frame("tickers", TICKER | {"instType": "SWAP"}))
    assert swap["quote_volume"] is None


def test_a_ticker_of_a_listing_without_trades_has_no_prices():
    event, = venue().events(frame("tickers", TICKER | {"last": "", "open24h": "", "high24h": "", "low24h": ""}))
    assert [event[name] for name in ("last", "open", "high", "low")] == [None] * 4


def test_a_quote_volume_keeps_more_digits_than_the_row_has():
    event, = venue().events(frame("tickers", TICKER | {"volCcy24h": "2222.259"}))
    assert event["quote_volume"] == 2222.259 and event["flags"] == LAST


def test_mark_and_index_prices():
    mark, = venue(ALL).events(FRAMES["mark-price"])
    assert mark == head(2, "mark", 1630049139746) | {"kind": "mark", "price": D("42310.6")}
    index, = venue(ALL).events(FRAMES["index-tickers"])
    assert index == head(1, "index", 1597026383085) | {"kind": "index", "price": D("0.1")}


def test_funding_has_the_coming_rate_the_one_after_it_and_the_interval():
    event, = venue(ALL).events(FRAMES["funding-rate"])
    assert event == head(2, "funding", 1700724675402, flags=LAST | INEXACT) | {
        "kind": "funding", "rate": D("0.000187539128"), "predicted": D("-0.00025"), "next_ns": 1700726400000 * 10**6,
        "interval_s": 28800}


def test_a_next_funding_rate_that_is_not_known_yet_is_undefined():
    event, = venue(ALL).events(frame("funding-rate", FUNDING | {"nextFundingRate": "", "fundingRate": "0.0001"}))
    assert event["predicted"] is None and event["flags"] == LAST


def test_funding_of_frames_without_time_is_marked():
    row = {key: value for key, value in FUNDING.items() if key != "ts"}
    event, = venue(ALL).events(frame("funding-rate", row))
    assert event["ts_event_ns"] == 0 and event["flags"] & TS_SUSPECT


def test_open_interest_is_in_contracts_and_usd():
    event, = venue(ALL).events(FRAMES["open-interest"])
    assert event == head(2, "open_interest", 1743041250440) | {
        "kind": "open_interest", "size": D("2216113.01"), "value": D("1939251795.54")}


def test_each_liquidation_of_a_row_is_an_event_on_the_rows_instrument():
    first, second = venue(ALL).events(FRAMES["liquidation-orders"])
    assert first == head(2, "liquidation", 1692266434010) | {
        "kind": "liquidation", "price": D("42000.1"), "size": D(13), "order_id": 0, "side": "bid"}
    assert (second["price"], second["size"], second["side"]) == (D(41999), D("1.5"), "ask")


@pytest.mark.parametrize("name, seconds", [("candle1s", 1), ("candle1m", 60), ("candle30m", 1800), ("candle1H", 3600),
                                           ("candle6Hutc", 21600), ("candle1Dutc", 86400), ("candle1W", 604800)])
def test_a_candle_knows_its_start_and_interval(name, seconds):
    event, = venue().events(frame(name, CANDLE))
    assert event == head(1, "candle", 1629993600000, slot_count=2) | {
        "kind": "candle", "open": D(42500), "high": D("48199.9"), "low": D("41006.1"), "close": D("41006.1"),
        "volume": D("3587.41204591"), "quote_volume": 166741046.22, "start_ns": 1629993600000 * 10**6, "count": 0,
        "interval_s": seconds, "closed": False}


def test_a_candle_says_when_it_is_over():
    event, = venue().events(frame("candle1m", CANDLE[:-1] + ["1"]))
    assert event["closed"] and event["interval_s"] == 60


@pytest.mark.parametrize("name", ["candle", "candle1", "candlem", "candle0m", "candle1x", "candle1mutx", "mark-price-candle1m"])
def test_a_channel_that_only_looks_like_a_candle_is_unknown(name):
    assert venue().inspect(frame(name, CANDLE))["error"] == "unknown"


def test_option_summary_gives_black_scholes_greeks_and_volatilities():
    event, = venue(ALL).events(FRAMES["opt-summary"])
    assert all(math.isnan(event.pop(name)) for name in ("rho", "ask_iv", "rate"))
    assert event == head(3, "greeks", 1728703155650, slot_count=3) | {
        "kind": "greeks", "delta": -0.9999, "gamma": 0.00000001, "vega": 0.125, "theta": 28.2649, "bid_iv": 0.25,
        "mark_iv": 0.5, "underlying": 62604.698}


def test_changes_of_the_instrument_list_are_dropped_on_purpose():
    seen = venue().inspect(text({"arg": {"channel": "instruments", "instType": "SPOT"}, "data": [{"instId": "A-B"}, {}]}))
    assert (seen["status"], seen["ignored"], seen["events"]) == (0, 2, [])


# -- order, truncation, unknown keys -------------------------------------------------------------------------

def orders(value):
    """The object with its keys in every order (at most 24 of them), and reversed all the way down."""
    keys = list(value)
    for order in itertools.islice(itertools.permutations(keys), 24):
        yield {key: value[key] for key in order}
    yield reversed_keys(value)


def reversed_keys(value):
    if isinstance(value, dict):
        return {key: reversed_keys(value[key]) for key in reversed(value)}
    return [reversed_keys(item) for item in value] if isinstance(value, list) else value


def same(events):
    return [{key: str(value) if value != value else value for key, value in event.items()} for event in events]


@pytest.mark.parametrize("name", FRAMES)
def test_the_order_of_keys_means_nothing(name):
    made = venue(ALL)
    expected = same(made.events(FRAMES[name]))
    message = json.loads(FRAMES[name])
    for shuffled in orders(message):
        assert same(made.events(text(shuffled))) == expected
    rows = message["data"] if isinstance(message["data"][0], dict) else []
    for row in orders(rows[0]) if rows else ():
        assert same(made.events(text(message | {"data": [row] + rows[1:]}))) == expected


@pytest.mark.parametrize("name", FRAMES)
def test_a_frame_cut_anywhere_gives_no_event_whatever_lies_behind_it(name):
    made, payload = venue(ALL), FRAMES[name]
    for size in range(len(payload)):
        for behind in (b"", payload[size:]):
            seen = made.inspect(payload[:size], behind)
            assert seen["status"] < 0 and not seen["events"] and not seen["control"], (size, seen)
            assert not seen["ignored"] and not seen["unlisted"]


@pytest.mark.parametrize("name", FRAMES)
def test_bytes_behind_the_object_are_refused(name):
    assert venue(ALL).inspect(FRAMES[name] + b"}")["error"] == "malformed"


@pytest.mark.parametrize("name", FRAMES)
def test_unknown_keys_are_skipped_wherever_they_stand(name):
    made, message = venue(ALL), json.loads(FRAMES[name])
    noise = {"zz": {"bids": [["1", "2"]], "px": None}, "y": [1, "\\\"", {}], "x": -1e5}
    noisy = noise | message | {"arg": noise | message["arg"]}
    noisy["data"] = [noise | row if isinstance(row, dict) else row + ["1"] for row in message["data"]]
    assert same(made.events(text(noisy))) == same(made.events(FRAMES[name]))


REQUIRED = [("trades", TRADE, key) for key in ("px", "sz", "side", "ts", "tradeId")] \
    + [("bbo-tbt", BBO, key) for key in ("asks", "bids", "ts")] \
    + [("books", CHANGE, key) for key in ("asks", "bids", "ts", "seqId", "prevSeqId")] \
    + [("tickers", TICKER, key) for key in ("last", "ts")] \
    + [("mark-price", MARK, key) for key in ("markPx", "ts")] + [("index-tickers", INDEX, key) for key in ("idxPx", "ts")] \
    + [("funding-rate", FUNDING, key) for key in ("fundingRate", "fundingTime")] \
    + [("open-interest", INTEREST, key) for key in ("oi", "ts")] + [("opt-summary", SUMMARY, key) for key in ("deltaBS", "ts")] \
    + [("liquidation-orders", LIQUIDATION, key) for key in ("details", "instId")]


@pytest.mark.parametrize("channel, row, key", REQUIRED)
def test_a_row_without_a_field_its_kind_needs_is_refused_whole(channel, row, key):
    made = venue(ALL)
    short = {name: value for name, value in row.items() if name != key}
    symbol = "" if key == "instId" else row.get("instId", "BTC-USDT")
    assert made.inspect(frame(channel, row, action="update", symbol=symbol))["status"] > 0
    seen = made.inspect(frame(channel, row, short, action="update", symbol=symbol))
    assert seen["error"] == "missing" and not seen["events"]


def test_a_book_message_without_action_is_refused():
    assert venue().inspect(frame("books", CHANGE))["error"] == "missing"
    assert venue().inspect(frame("books", CHANGE, action="replace"))["error"] == "unknown"


@pytest.mark.parametrize("row, error", [
    (TRADE | {"side": "hold"}, "unknown"), (TRADE | {"px": "abc"}, "malformed"), (TRADE | {"tradeId": "-1"}, "range"),
    (TRADE | {"count": "4294967296"}, "range"), (TRADE | {"px": "1.123"}, "digits"), (TRADE | {"ts": "99999999999999999"}, "range")])
def test_a_bad_value_in_a_trade_is_named(row, error):
    assert venue().inspect(frame("trades", TRADE, row))["error"] == error


@pytest.mark.parametrize("field, value", [("seqId", -1), ("prevSeqId", -2), ("checksum", 4294967296), ("checksum", -2147483649)])
def test_a_sequence_or_checksum_out_of_range_is_refused(field, value):
    assert venue().inspect(frame("books", CHANGE | {field: value}, action="update"))["error"] == "range"


@pytest.mark.parametrize("value, expected", [(-914047754, 2**32 - 914047754), (4294967295, 4294967295), (-2147483648, 2**31), (0, None)])
def test_a_checksum_is_signed_or_unsigned_and_zero_means_none(value, expected):
    event, = venue().events(frame("books", CHANGE | {"checksum": value}, action="update"))
    assert event["checksum"] == expected


@pytest.mark.parametrize("payload", [b"", b"{}", b"[]", b"null", b"ping", b"pon", b"pongs", b"{\"arg\":{}}", b"{\"data\":[]}",
                                     text({"arg": {"channel": "trades", "instId": "BTC-USDT"}})])
def test_what_is_neither_data_nor_control_is_an_error(payload):
    seen = venue().inspect(payload)
    assert seen["status"] < 0 and not seen["control"]


def test_a_channel_we_do_not_know_is_named_unknown():
    assert venue().inspect(frame("books-elp", CHANGE, action="update"))["error"] == "unknown"


@pytest.mark.parametrize("name", set(FRAMES) - {"candle1m"})
def test_symbols_that_are_not_listed_are_counted_and_leave_no_trace(name):
    made = venue({"OTHER-USDT": (-2, -2)})
    seen = made.inspect(FRAMES[name])
    assert seen["status"] == 0 and not seen["events"] and seen["unlisted"] == len(json.loads(FRAMES[name])["data"])


@pytest.mark.parametrize("name", FRAMES)
def test_a_frame_with_any_byte_changed_is_decoded_or_refused_whole(name):
    made, random_ = venue(ALL), random.Random(name)
    for _ in range(400):
        payload = bytearray(FRAMES[name])
        for _ in range(random_.choice((1, 1, 2, 5))):
            payload[random_.randrange(len(payload))] = random_.choice(b'"{}[],:\\-.0123456789eEnulltrue \x00\xff')
        seen = made.inspect(bytes(payload))
        assert seen["status"] == len(seen["events"]) or (seen["status"] < 0 and not seen["events"])
        assert not (seen["events"] and seen["control"])
        if seen["status"] == 0 and not seen["control"]:
            assert seen["unlisted"] or seen["ignored"] or b"[]" in payload.replace(b" ", b"")


# -- sequence ------------------------------------------------------------------------------------------------

def step(made, state, prev, seq, last, old_run=0):
    levels = {"asks": [], "bids": []} if prev == seq else {}
    event, = made.events(frame("books", CHANGE | levels | {"prevSeqId": prev, "seqId": seq},
                               action="snapshot" if prev == -1 else "update"))
    return made.chain_step(state, last, event, old_run)


def test_the_documented_sequence_with_keepalive_and_reset_has_no_gap():
    made, state, last = venue(), "waiting", 0
    for prev, seq in [(-1, 10), (10, 15), (15, 15), (15, 3), (3, 5)]:
        verdict, state, last = step(made, state, prev, seq, last)
        assert (verdict, state, last) == ("apply", "live", seq)


@pytest.mark.parametrize("prev, seq, verdict", [
    (15, 20, "apply"), (15, 15, "apply"), (15, 3, "apply"),  # in line, keepalive, reset
    (16, 20, "gap"), (14, 20, "gap"), (20, 3, "gap"),        # a hole, an overlap, a reset after a hole
    (10, 15, "old"), (3, 10, "old"), (5, 5, "old")])         # seen before
def test_only_the_predecessor_decides_what_a_change_is(prev, seq, verdict):
    assert step(venue(), "live", prev, seq, 15)[0] == verdict


def test_a_reset_seen_twice_is_old_not_a_gap():
    assert step(venue(), "live", 15, 3, 3)[0] == "old"


def test_changes_that_stay_old_for_640_messages_end_in_a_gap():
    assert step(venue(), "live", 3, 5, 15, old_run=638)[0] == "old"
    assert step(venue(), "live", 3, 5, 15, old_run=639)[0] == "gap"


def test_frames_without_ids_are_chained_by_nothing_but_only_if_the_snapshot_had_none():
    row = {key: value for key, value in CHANGE.items() if key not in ("seqId", "prevSeqId")}
    event, = venue().events(frame("books", row, action="update"))
    assert venue().chain_step("live", 0, event)[0] == "apply"
    assert venue().chain_step("live", 123456, event)[0] == "gap"


def test_an_update_that_claims_to_follow_nothing_is_a_gap():
    event, = venue().events(frame("books", CHANGE | {"prevSeqId": -1}, action="update"))
    assert venue().chain_step("live", 123456, event)[0] == "gap"


def test_event_times_that_run_backwards_change_nothing():
    first, = venue().events(frame("books", CHANGE, action="update"))
    second, = venue().events(frame("books", CHANGE | {"ts": "1500000000000", "prevSeqId": 123457, "seqId": 123458}, action="update"))
    assert second["ts_event_ns"] < first["ts_event_ns"]
    assert venue().chain_step("live", 123457, second) == ("apply", "live", 123458)


def test_a_crossed_book_is_decoded_like_any_other():
    event, = venue().events(frame("books", BOOK | {"bids": [["9000", "1", "0", "1"]]}, action="snapshot"))
    assert event["levels"][0] == ("bid", D(9000), D(1), 1)


def test_the_documented_checksum_vector():
    made = venue({"A-B": (-1, 0)})
    levels = [("bid", D("3366.1"), D(7)), ("bid", D(3366), D(6)), ("ask", D("3366.8"), D(9)), ("ask", D(3368), D(8))]
    right = zlib.crc32(b"3366.1:7:3366.8:9:3366:6:3368:8")
    assert made.checksum_step(1, levels, {"checksum": right}) == 1
    assert made.checksum_step(1, levels, {"checksum": right ^ 1}) == 0
    assert made.checksum_step(1, levels[:3], {"checksum": right}) == 0
    one_ask_less = zlib.crc32(b"3366.1:7:3366.8:9:3366:6")
    assert made.checksum_step(1, levels[:3], {"checksum": one_ask_less}) == 1
    assert made.checksum_step(1, levels, {"checksum": None}) == -1


# -- control -------------------------------------------------------------------------------------------------

WIRE = '{"channel":"books","instId":"BTC-USDT"}'
CONTROL = [
    (b"pong", [Alive()]),
    (b'{"id":"1512","event":"subscribe","arg":{"channel":"books","instId":"BTC-USDT"},"connId":"a4d3ae55"}', [Ack(1512, WIRE)]),
    (b'{"event":"subscribe","arg":{"instId":"BTC-USDT","channel":"books"}}', [Ack(0, WIRE)]),
    (b'{"id":"7","event":"unsubscribe","arg":{"channel":"books","instId":"BTC-USDT"}}', [Ack(7, WIRE)]),
    (b'{"id":"1512","event":"error","code":"60012","msg":"Invalid request: {\\"op\\": \\"subscribe\\"}","connId":"a4d3ae55"}',
     [Ack(1512, "", False, 'the reason')]),
    (b'{"event":"error","code":"60012","msg":"Invalid request","connId":"a"}', [Complaint("60012", "Invalid request")]),
    (b'{"id":"9","event":"error","code":"60018","msg":"Wrong URL or channel:books,instId:BTC-USDT doesn\'t exist.","connId":"a"}',
     [Ack(9, WIRE, False, 'the reason')]),
    (b'{"event":"error","code":"64004","msg":"no","arg":{"channel":"books","instId":"BTC-USDT"},"connId":"a"}',
     [Complaint("64004", "no", WIRE)]),
    (b'{"event":"notice","code":"64008","msg":"The connection will soon be closed for a service upgrade. Please reconnect.",'
     b'"connId":"a"}', [Closing("The connection will soon be closed for a service upgrade. Please reconnect.")]),
    (b'{"event":"notice","code":"1","msg":"x","connId":"a"}', [Complaint("1", "x")]),
    (b'{"event":"channel-conn-count","channel":"orders","connCount":"2","connId":"a"}', [Alive()]),
    (b'{"event":"channel-conn-count-error","channel":"books","instId":"BTC-USDT","connCount":"30","connId":"a"}',
     [Complaint("channel-conn-count-error", "channel-conn-count-error: 30 connections already carry this channel", WIRE)]),
    (b'{"msg":"Invalid apiKey","code":"60005","connId":"24a2aea3"}', [Complaint("60005", "Invalid apiKey")]),
]


@pytest.mark.parametrize("payload, expected", CONTROL)
def test_a_control_frame_is_told_from_data_and_explained(payload, expected):
    seen = venue().inspect(payload)
    assert seen["control"] and seen["status"] == 0 and not seen["events"]
    answer = venue().control(payload)
    for given, wanted in zip(answer, expected, strict=True):
        if getattr(wanted, "reason", "") == "the reason":
            message = json.loads(payload)
            assert given == Ack(wanted.request_id, wanted.wire, False, f"{message['code']} {message['msg']}")
        else:
            assert given == wanted


@pytest.mark.parametrize("payload", [b'{"event":"subscribe"}', b'{"event":"error","code":5,"msg":7}', b'{"event":["x"],"id":{}}',
                                     b'{"event":"error","arg":{},"id":"\xc2\xb2"}', b'{"code":null,"msg":null}'])
def test_an_odd_control_frame_is_explained_without_an_exception(payload):
    assert venue().inspect(payload)["control"] and len(venue().control(payload)) == 1


def test_an_ack_for_data_that_came_first_changes_nothing():
    made = venue()
    assert made.events(FRAMES["books snapshot"]) and made.control(CONTROL[1][0]) == [Ack(1512, WIRE)]


def test_a_wire_is_the_same_text_whatever_the_order_of_the_venues_keys():
    arg = {"instId": "BTC-USDT-SWAP", "uly": "", "instType": "SWAP", "channel": "x", "extra": "1"}
    assert okx.wire(arg) == '{"channel":"x","instType":"SWAP","instId":"BTC-USDT-SWAP","extra":"1"}'


# -- streams and requests ------------------------------------------------------------------------------------

@pytest.mark.parametrize("symbol, asked, endpoint, wire, channel, depth, snapshot", [
    ("BTC-USDT", "trade", "public", {"channel": "trades", "instId": "BTC-USDT"}, "trade", 0, ""),
    ("BTC-USDT", "agg_trade", "public", {"channel": "trades", "instId": "BTC-USDT"}, "trade", 0, ""),
    ("BTC-USDT", "trade@all", "business", {"channel": "trades-all", "instId": "BTC-USDT"}, "trade", 0, ""),
    ("BTC-USDT", "quote", "public", {"channel": "bbo-tbt", "instId": "BTC-USDT"}, "quote", 0, ""),
    ("BTC-USDT", "book", "public", {"channel": "books", "instId": "BTC-USDT"}, "book", 400, "in_band"),
    ("BTC-USDT", "book400@100ms", "public", {"channel": "books", "instId": "BTC-USDT"}, "book", 400, "in_band"),
    ("BTC-USDT", "book5", "public", {"channel": "books5", "instId": "BTC-USDT"}, "book", 5, "window"),
    ("BTC-USDT", "ticker", "public", {"channel": "tickers", "instId": "BTC-USDT"}, "ticker", 0, ""),
    ("BTC-USDT-SWAP", "mark", "public", {"channel": "mark-price", "instId": "BTC-USDT-SWAP"}, "mark", 0, ""),
    ("BTC-USDT", "index", "public", {"channel": "index-tickers", "instId": "BTC-USDT"}, "index", 0, ""),
    ("BTC-USDT-SWAP", "funding", "public", {"channel": "funding-rate", "instId": "BTC-USDT-SWAP"}, "funding", 0, ""),
    ("BTC-USD-261225", "open_interest", "public", {"channel": "open-interest", "instId": "BTC-USD-261225"}, "open_interest", 0, ""),
    ("BTC-USDT", "candle@1h", "business", {"channel": "candle1H", "instId": "BTC-USDT"}, "candle", 0, ""),
    ("BTC-USDT-SWAP", "liquidation", "public", {"channel": "liquidation-orders", "instType": "SWAP"}, "liquidation", 0, ""),
    ("BTC-USD-261225-100000-C", "greeks", "public", {"channel": "opt-summary", "instFamily": "BTC-USD"}, "greeks", 0, ""),
    ("BTC-USD-261225", "instrument", "public", {"channel": "instruments", "instType": "FUTURES"}, "instrument", 0, "")])
def test_a_channel_becomes_the_venues_own_argument(symbol, asked, endpoint, wire, channel, depth, snapshot):
    stream = venue().stream(symbol, Channel.parse(asked))
    assert (stream.endpoint, json.loads(stream.wire), stream.channel) == (endpoint, wire, channel)
    assert (stream.depth, stream.snapshot) == (depth, snapshot)
    assert stream.wire == okx.wire(wire) and stream.symbol == (symbol if "instId" in wire else "")
    assert (stream.first_data_s == 0) == (channel in ("trade", "liquidation", "instrument"))


@pytest.mark.parametrize("symbol, asked, hint", [
    ("BTC-USDT", "book50", "login"), ("BTC-USDT", "book@10ms", "login"), ("BTC-USDT", "book20", "book5"),
    ("BTC-USDT", "candle@7m", "1m"), ("BTC-USDT", "candle@1M", "1w"), ("BTC-USDT", "funding", "SWAP"),
    ("BTC-USD-261225", "funding", "BTC-USD-SWAP"), ("BTC-USDT-SWAP", "index", "index of BTC-USDT"),
    ("BTC-USDT-SWAP", "greeks", "options"), ('A-B"},{', "trade", "BTC-USDT"), ("A-" + "B" * 48, "trade", "BTC-USDT"), ("A-", "trade", "BTC"), ("BTC-USDT", "mark", "SWAP"), ("btcusdt", "trade", "BTC-USDT"),
    ("BTC-USDT", "trade@raw", "trade@all"), ("BTC-USDT", "ticker@100ms", "plain ticker")])
def test_what_okx_does_not_serve_is_refused_with_what_to_ask_instead(symbol, asked, hint):
    with pytest.raises(VenueError, match=hint):
        venue().stream(symbol, Channel.parse(asked))


def test_requests_stay_within_64_kb_and_are_as_few_as_possible():
    made = venue()
    streams = [made.stream(f"COIN{number}-USDT-SWAP", Channel("book")) for number in range(2000)]
    requests = made.subscribe("public", streams, 41)
    assert [number for number, _, _ in requests] == [41, 42]
    assert all(len(sent.encode()) <= 65536 for _, sent, _ in requests) and len(requests[0][1]) > 65000
    assert [stream for _, _, part in requests for stream in part] == streams
    for number, sent, part in requests:
        message = json.loads(sent)
        assert message["id"] == str(number) and message["op"] == "subscribe"
        assert [okx.wire(arg) for arg in message["args"]] == [stream.wire for stream in part]
    assert json.loads(made.unsubscribe("public", streams[:1], 5)[0][1])["op"] == "unsubscribe"
    assert made.subscribe("public", [], 1) == []


def test_the_ping_is_text():
    assert venue().ping("public", 1) == "ping" and venue().on_open("public") == []


# -- instruments ---------------------------------------------------------------------------------------------

ROW = {"ctMult": "", "ctType": "", "ctVal": "", "expTime": "", "instId": "BTC-USDT", "instType": "SPOT", "lotSz": "0.00000001",
       "optType": "", "state": "live", "stk": "", "tickSz": "0.1"}


def listed(**fields):
    return venue().instruments([text({"code": "0", "data": [ROW | fields]})])


def test_instruments_of_every_type():
    spot, = listed()
    assert (spot.canonical, spot.kind, spot.tick, spot.lot, spot.multiplier) == ("BTC-USDT", "spot", "0.1", "0.00000001", "1")
    swap, = listed(instId="BTC-USD-SWAP", instType="SWAP", ctType="inverse", ctVal="100", ctMult="1", lotSz="1")
    assert (swap.canonical, swap.kind, swap.multiplier, swap.inverse, swap.expiry_ns) == ("BTC-USD-PERP", "perpetual", "100", True, 0)
    future, = listed(instId="BTC-USD-220527", instType="FUTURES", ctType="inverse", ctVal="100", ctMult="1",
                     expTime="1653638400000")
    assert (future.canonical, future.kind, future.expiry_ns) == ("BTC-USD-20220527", "future", 1653638400000 * 10**6)
    option, = listed(instId="BTC-USD-220514-22000-C", instType="OPTION", ctVal="1", ctMult="0.1", expTime="1652515200000",
                     stk="22000", optType="C", tickSz="0.0005")
    assert (option.canonical, option.kind, option.multiplier, option.strike, option.inverse) == (
        "BTC-USD-20220514-22000-C", "option", "0.1", "22000", False)


def test_an_announced_listing_without_tick_waits_for_the_next_list():
    assert listed(tickSz="") == [] and not listed(state="test")[0].listed


def test_a_refused_list_says_why():
    with pytest.raises(VenueError, match="50011.*Too many"):
        venue().instruments([b'{"code":"50011","msg":"Too many requests","data":[]}'])


def test_each_type_is_asked_for():
    paths = [request.path for request in venue().instrument_requests()]
    assert [path.rpartition("instType=")[2] for path in paths] == ["SPOT", "SWAP", "FUTURES", "OPTION&uly=BTC-USD", "OPTION&uly=ETH-USD"]


# -- recorded traffic ----------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def recorded():
    path = CAPTURES / "okx_2022.head.tsv.gz"
    if not path.exists():
        pytest.skip(f"no recording at {path}; set FEEDHANDLER_CAPTURES")
    return [line.split("\t", 3)[2:] for line in gzip.open(path, "rt", newline="\n").read().split("\n") if line]


def listed_of(recorded):
    made, bodies = okx.VENUE(4096), []
    for direction, payload in recorded:
        if direction == "rest":
            bodies.append(payload.partition(" ")[2].encode())
    instruments = {row.symbol: row for row in made.instruments(bodies)}
    for id, row in enumerate(instruments.values()):
        made.add_instrument(id, row.symbol, D(row.tick).normalize().as_tuple().exponent,
                            min(0, D(row.lot).normalize().as_tuple().exponent))
    return made, list(instruments), instruments


def expected_event(message, row, symbols):
    channel, exact = message["arg"]["channel"], D
    ts_ns = int(row["ts"]) * 1_000_000
    base = {"instrument": symbols.index(message["arg"]["instId"]), "ts_event_ns": ts_ns}
    if channel == "trades":
        return base | {"kind": "trade", "price": exact(row["px"]), "size": exact(row["sz"]), "trade_id": int(row["tradeId"]),
                       "aggressor": {"buy": "bid", "sell": "ask"}[row["side"]], "count": 0}
    if channel == "tickers":
        return base | {"kind": "ticker", "last": exact(row["last"]), "open": exact(row["open24h"]),
                       "high": exact(row["high24h"]), "low": exact(row["low24h"])}
    levels = [("bid", level) for level in row["bids"]] + [("ask", level) for level in row["asks"]]
    return base | {"kind": "book", "snapshot": message["action"] == "snapshot", "prev": None, "checksum": row["checksum"] % 2**32,
                   "levels": [(side, exact(price), exact(size)) + ((int(count),) if int(count) else ())
                              for side, (price, size, _, count) in levels]}


def test_every_recorded_frame_decodes_to_what_its_text_says(recorded):
    made, symbols, _ = listed_of(recorded)
    kinds = {}
    for direction, payload in recorded:
        if direction != "in":
            continue
        message, seen = json.loads(payload), made.inspect(payload.encode())
        if "event" in message:
            assert seen["control"] and made.control(payload.encode()) == [Ack(0, okx.wire(message["arg"]))]
            continue
        assert not seen["error"] and len(seen["events"]) == len(message["data"])
        for event, row in zip(seen["events"], message["data"]):
            wanted = expected_event(message, row, symbols)
            assert {key: event[key] for key in wanted} == wanted
            kinds[event["kind"]] = kinds.get(event["kind"], 0) + 1
    assert kinds == {"book": 194, "trade": 46, "ticker": 20}


def test_every_recorded_checksum_matches_the_book_and_a_lost_change_does_not(recorded):
    made, _, _ = listed_of(recorded)
    books, right, lost = {}, 0, {}
    for direction, payload in recorded:
        if direction != "in" or '"books"' not in payload or '"event"' in payload:
            continue
        event, = made.events(payload.encode())
        if event["snapshot"]:
            books[event["instrument"]] = {}
        book = books[event["instrument"]]
        before = dict(book)
        for side, price, size, *_ in event["levels"]:
            book[side, price] = size
        levels = [(*key, size) for key, size in book.items() if size]
        right += made.checksum_step(event["instrument"], levels, event)
        stale = made.checksum_step(event["instrument"], [(*key, size) for key, size in before.items() if size], event)
        lost[stale] = lost.get(stale, 0) + 1
    assert right == 194 and lost[0] > 150
