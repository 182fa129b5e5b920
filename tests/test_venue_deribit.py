"""Deribit: bytes of documented and recorded frames in, events out, and every rule of its sequence."""
import decimal
import gzip
import itertools
import json
import math
import os
import pathlib
import random

import pytest

from feedhandler.venue import Ack, Alive, Channel, Closing, Complaint, Reply, VenueError
from feedhandler.venues import deribit

D = decimal.Decimal
LAST, SNAPSHOT, INEXACT = 1, 2, 32
CAPTURES = pathlib.Path(os.environ.get("FEEDHANDLER_CAPTURES",
                                       pathlib.Path(__file__).resolve().parents[1] / "../shared/captures"))
ALL = {"BTC-PERPETUAL": (-2, 0), "ETH-30JUL21-2800-C": (-6, 0), "BTC_USDC-PERPETUAL": (-2, -4), "btc_usd": (-4, 0)}


def venue(symbols=None):
    """A venue that knows these symbols: {name: (price exponent, size exponent)}, ids from 1 in order."""
    made = deribit.VENUE(64)
    for id, (symbol, exponents) in enumerate((symbols or ALL).items(), 1):
        made.add_instrument(id, symbol, *exponents)
    return made


def text(value):
    return json.dumps(value, separators=(",", ":")).encode()


def frame(channel, data):
    return text({"jsonrpc": "2.0", "method": "subscription", "params": {"channel": channel, "data": data}})


SNAP = {"timestamp": 1790133840448, "type": "snapshot", "change_id": 193809616666, "instrument_name": "BTC-PERPETUAL",
        "bids": [["new", 228.51, 220.0], ["new", 228.48, 340.0]], "asks": [["new", 228.52, 340.0]]}
CHANGE = {"timestamp": 1790133845258, "type": "change", "change_id": 193809650259, "instrument_name": "BTC-PERPETUAL",
          "bids": [["delete", 228.48, 0.0]], "asks": [["change", 228.58, 9180.0], ["new", 229.0, 10.0]],
          "prev_change_id": 193809644396}
WINDOW = {"timestamp": 1790133841369, "change_id": 193809623552, "instrument_name": "BTC_USDC-PERPETUAL",
          "bids": [[86775.8, 0.216], [86773.4, 0.0477]], "asks": [[86776.0, 0.0009]]}
QUOTE = {"timestamp": 1765541767174, "instrument_name": "BTC-PERPETUAL", "best_ask_price": 92288.5, "best_bid_price": 92288.0,
         "best_ask_amount": 99470.0, "best_bid_amount": 133440.0}
TRADE = {"timestamp": 1765531356452, "price": 92294.5, "amount": 10.0, "direction": "sell", "index_price": 92276.75,
         "instrument_name": "BTC-PERPETUAL", "trade_seq": 271252854, "mark_price": 92287.11, "tick_direction": 2,
         "contracts": 1.0, "trade_id": "403691824"}
OPTION = {"underlying_price": 2003.61, "underlying_index": "ETH-30JUL21", "timestamp": 1626993723632,
          "stats": {"volume": 869.0, "price_change": 0.0, "low": 0.0015, "high": 0.0025}, "state": "open",
          "settlement_price": 0.0, "open_interest": 12685.0, "min_price": 0.0001, "max_price": 0.025, "mark_price": 0.001972,
          "mark_iv": 120.5, "last_price": 0.002, "interest_rate": 0.25, "instrument_name": "ETH-30JUL21-2800-C",
          "index_price": 2006.72, "greeks": {"vega": 0.20072, "theta": -1.64029, "rho": 0.01188, "gamma": 0.0002,
                                             "delta": 0.03127},
          "estimated_delivery_price": 2006.72, "bid_iv": 115.25, "best_bid_price": 0.0015, "best_bid_amount": 4714.0,
          "best_ask_price": 0.0025, "best_ask_amount": 873.0, "ask_iv": 125.0}
PERPETUAL = {"timestamp": 1765541767174, "stats": {"volume_usd": 541029350.0, "volume": 5871, "price_change": 0.4153,
                                                   "low": 91000.5, "high": 93500.0},
             "state": "open", "settlement_price": 91880.0, "open_interest": 1020304050.0, "min_price": 90800.0,
             "max_price": 93600.0, "mark_price": 92287.11, "last_price": 92288.5, "interest_value": 0.1,
             "instrument_name": "BTC-PERPETUAL", "index_price": 92276.75, "funding_8h": 0.00001234, "current_funding": 3.14e-06,
             "estimated_delivery_price": 92276.75, "best_bid_price": 92288.0, "best_bid_amount": 133440.0,
             "best_ask_price": 92288.5, "best_ask_amount": 99470.0}
INTEREST = {"timestamp": 1571386349530, "index_price": 7872.88, "interest": 0.004999511380756577, "instrument_name": "BTC-PERPETUAL"}
INDEX = {"timestamp": 1550588002899, "price": 3937.8903, "index_name": "btc_usd"}
CANDLE = {"volume": 52, "tick": 1573645080000, "open": 8869.79, "low": 8788.25, "high": 8870.31, "cost": 460.25, "close": 8791.25}
FRAMES = {
    "book snapshot": frame("book.BTC-PERPETUAL.100ms", SNAP),
    "book change": frame("book.BTC-PERPETUAL.100ms", CHANGE),
    "book raw": frame("book.BTC-PERPETUAL.raw", CHANGE),
    "book window": frame("book.BTC_USDC-PERPETUAL.none.20.100ms", WINDOW),
    "quote": frame("quote.BTC-PERPETUAL", QUOTE),
    "trades": frame("trades.BTC-PERPETUAL.100ms", [TRADE, TRADE | {"trade_seq": 271252855, "trade_id": "403691825", "direction": "buy"}]),
    "ticker option": frame("ticker.ETH-30JUL21-2800-C.100ms", OPTION),
    "ticker perpetual": frame("ticker.BTC-PERPETUAL.100ms", PERPETUAL),
    "perpetual": frame("perpetual.BTC-PERPETUAL.100ms", INTEREST),
    "price index": frame("deribit_price_index.btc_usd", INDEX),
    "chart": frame("chart.trades.BTC-PERPETUAL.1", CANDLE),
}


def head(instrument, channel, ts_ms, sequence=0, slot_count=1, flags=LAST):
    return {"instrument": instrument, "channel": channel, "flags": flags, "ts_event_ns": ts_ms * 1_000_000,
            "sequence": sequence, "slot_count": slot_count}


BOOK_HEAD = {"kind": "book", "first": None, "checksum": None, "window": False}


def test_a_book_snapshot_has_all_levels_and_no_predecessor():
    assert venue().events(FRAMES["book snapshot"]) == [
        head(1, "book", 1790133840448, 193809616666, flags=LAST | SNAPSHOT) | BOOK_HEAD | {
            "last": 193809616666, "prev": None, "snapshot": True,
            "levels": [("bid", D("228.51"), D(220)), ("bid", D("228.48"), D(340)), ("ask", D("228.52"), D(340))]}]


@pytest.mark.parametrize("name", ["book change", "book raw"])
def test_a_book_change_names_its_predecessor_whatever_the_speed(name):
    assert venue().events(FRAMES[name]) == [head(1, "book", 1790133845258, 193809650259) | BOOK_HEAD | {
        "last": 193809650259, "prev": 193809644396, "snapshot": False,
        "levels": [("bid", D("228.48"), 0), ("ask", D("228.58"), D(9180)), ("ask", D(229), D(10))]}]


def test_bids_come_before_asks_even_where_the_venue_sends_asks_first():
    swapped = {key: CHANGE[key] for key in ("asks", "bids", "timestamp", "type", "change_id", "prev_change_id")}
    assert venue().events(frame("book.BTC-PERPETUAL.100ms", swapped)) == venue().events(FRAMES["book change"])


def test_a_snapshot_may_be_empty_on_both_sides():
    event, = venue().events(frame("book.BTC-PERPETUAL.100ms", SNAP | {"bids": [], "asks": []}))
    assert event["snapshot"] and event["levels"] == []
    assert venue().chain_step("waiting", 0, event) == ("apply", "live", 193809616666)


def test_a_snapshot_with_a_null_predecessor_is_the_same_snapshot():
    assert venue().events(frame("book.BTC-PERPETUAL.100ms", SNAP | {"prev_change_id": None})) == venue().events(FRAMES["book snapshot"])


def test_a_grouped_book_is_a_whole_window_with_rows_of_two():
    event, = venue().events(FRAMES["book window"])
    assert (event["window"], event["snapshot"], event["prev"], event["last"]) == (True, True, None, 193809623552)
    assert event["levels"] == [("bid", D("86775.8"), D("0.216")), ("bid", D("86773.4"), D("0.0477")),
                               ("ask", D("86776.0"), D("0.0009"))]


def test_amounts_of_linear_perpetuals_are_coins_and_of_inverse_ones_usd():
    linear, = venue().events(frame("trades.BTC_USDC-PERPETUAL.100ms", [TRADE | {"instrument_name": "BTC_USDC-PERPETUAL",
                                                                                "amount": 0.0123, "contracts": 123.0}]))
    inverse = venue().events(FRAMES["trades"])[0]
    assert linear["size"] == D("0.0123") and inverse["size"] == D(10)


def test_numbers_in_exponent_form_are_exact():
    payload = FRAMES["trades"].replace(b"92294.5", b"2.2e3").replace(b"10.0", b"1.5E+2")
    assert [(event["price"], event["size"]) for event in venue().events(payload)] == [(D(2200), D(150))] * 2
    greek = frame("ticker.ETH-30JUL21-2800-C.100ms", OPTION).replace(b"0.001972", b"1.42e-4")
    assert venue().events(greek)[1]["price"] == D("0.000142")


def test_each_trade_of_a_frame_is_an_event():
    first, second = venue().events(FRAMES["trades"])
    assert first == head(1, "trade", 1765531356452, 271252854) | {
        "kind": "trade", "price": D("92294.5"), "size": D(10), "trade_id": 403691824, "aggressor": "ask", "aggregate": False,
        "count": 1}
    assert (second["trade_id"], second["sequence"], second["aggressor"]) == (403691825, 271252855, "bid")


@pytest.mark.parametrize("given, id", [("ETH-34066587", 34066587), ("BTC_USDC-1", 1), ("9999999999999999999", 9999999999999999999)])
def test_a_trade_id_is_the_number_behind_the_last_dash(given, id):
    assert venue().events(frame("trades.X.100ms", [TRADE | {"trade_id": given}]))[0]["trade_id"] == id


@pytest.mark.parametrize("given", ["", "ETH-", "ETH", "12x", "x12", "99999999999999999999"])
def test_a_trade_id_that_is_no_number_is_refused(given):
    assert venue().inspect(frame("trades.X.100ms", [TRADE | {"trade_id": given}]))["error"] == "range"


@pytest.mark.parametrize("mark, side", [("T", "ask"), ("MT", "ask"), ("M", "bid")])
@pytest.mark.parametrize("first", [True, False])
def test_a_liquidation_is_told_beside_its_trade_with_the_side_of_the_liquidated_order(mark, side, first):
    row = {"liquidation": mark} | TRADE if first else TRADE | {"liquidation": mark}
    trade, liquidation = venue().events(frame("trades.BTC-PERPETUAL.100ms", [row]))
    assert trade["kind"] == "trade"
    assert liquidation == head(1, "trade", 1765531356452) | {
        "kind": "liquidation", "price": D("92294.5"), "size": D(10), "order_id": 0, "side": side}


def test_block_and_combo_fields_of_a_trade_are_skipped():
    row = TRADE | {"block_trade_id": "BLOCK-1", "combo_id": "BTC-CS-1", "combo_trade_id": 5, "block_trade_leg_count": 2,
                   "legs": [{"price": 1, "amount": 3, "direction": "buy", "instrument_name": "X", "trade_id": "9"}]}
    assert venue().events(frame("trades.BTC-PERPETUAL.100ms", [row])) == venue().events(FRAMES["trades"])[:1]


def test_trades_of_a_whole_kind_name_their_instruments():
    assert venue().events(frame("trades.future.BTC.100ms", [TRADE]))[0]["instrument"] == 1


def test_a_quote_has_both_sides():
    assert venue().events(FRAMES["quote"]) == [head(1, "quote", 1765541767174) | {
        "kind": "quote", "bid_price": D(92288), "bid_size": D(133440), "ask_price": D("92288.5"), "ask_size": D(99470)}]


@pytest.mark.parametrize("missing", [{"best_bid_price": None, "best_bid_amount": 0.0}, {"best_bid_price": 0.0, "best_bid_amount": 0.0},
                                     {"best_bid_price": None, "best_bid_amount": None}])
def test_an_empty_side_of_a_quote_has_no_price(missing):
    event, = venue().events(frame("quote.BTC-PERPETUAL", QUOTE | missing))
    assert event["bid_price"] is None and event["bid_size"] == 0 and event["ask_price"] == D("92288.5")


def test_the_ticker_of_an_option_gives_ticker_mark_index_open_interest_and_greeks():
    ticker, mark, index, interest, greeks = venue().events(FRAMES["ticker option"])
    assert ticker == head(2, "ticker", 1626993723632, slot_count=2) | {
        "kind": "ticker", "last": D("0.002"), "open": None, "high": D("0.0025"), "low": D("0.0015"), "volume": D(869),
        "quote_volume": None, "average": None, "count": 0}
    assert mark == head(2, "ticker", 1626993723632) | {"kind": "mark", "price": D("0.001972")}
    assert index == head(2, "ticker", 1626993723632) | {"kind": "index", "price": D("2006.72")}
    assert interest == head(2, "ticker", 1626993723632) | {"kind": "open_interest", "size": D(12685), "value": None}
    assert greeks == head(2, "ticker", 1626993723632, slot_count=3) | {
        "kind": "greeks", "delta": 0.03127, "gamma": 0.0002, "vega": 0.20072, "theta": -1.64029, "rho": 0.01188,
        "bid_iv": 1.1525, "ask_iv": 1.25, "mark_iv": 1.205, "underlying": 2003.61, "rate": 0.25}


def test_the_ticker_of_a_perpetual_gives_funding_instead_of_greeks():
    ticker, mark, index, funding, interest = venue().events(FRAMES["ticker perpetual"])
    assert (ticker["volume"], ticker["quote_volume"]) == (D(5871), 541029350.0)
    assert (mark["price"], index["price"], interest["size"]) == (D("92287.11"), D("92276.75"), D(1020304050))
    assert funding == head(1, "ticker", 1765541767174) | {
        "kind": "funding", "rate": D("0.00000314"), "predicted": None, "next_ns": 0, "interval_s": 28800}


def test_a_ticker_without_trades_has_null_values():
    event = venue().events(frame("ticker.ETH-30JUL21-2800-C.raw", OPTION | {
        "last_price": None, "stats": {"volume": None, "price_change": None, "low": None, "high": None}, "bid_iv": None}))
    assert [event[0][name] for name in ("last", "high", "low", "volume")] == [None] * 4
    assert math.isnan(event[4]["bid_iv"])


def test_the_perpetual_channel_gives_funding_and_index():
    funding, index = venue().events(FRAMES["perpetual"])
    assert funding == head(1, "funding", 1571386349530, flags=LAST | INEXACT) | {
        "kind": "funding", "rate": D("0.004999511381"), "predicted": None, "next_ns": 0, "interval_s": 28800}
    assert index == head(1, "funding", 1571386349530) | {"kind": "index", "price": D("7872.88")}


def test_a_price_index_belongs_to_the_instrument_of_its_name():
    assert venue().events(FRAMES["price index"]) == [head(4, "index", 1550588002899) | {"kind": "index", "price": D("3937.8903")}]


@pytest.mark.parametrize("resolution, seconds", [("1", 60), ("30", 1800), ("720", 43200), ("1D", 86400)])
def test_a_candle_knows_its_start_and_interval(resolution, seconds):
    assert venue().events(frame(f"chart.trades.BTC-PERPETUAL.{resolution}", CANDLE)) == [
        head(1, "candle", 1573645080000, slot_count=2) | {
            "kind": "candle", "open": D("8869.79"), "high": D("8870.31"), "low": D("8788.25"), "close": D("8791.25"),
            "volume": D(52), "quote_volume": 460.25, "start_ns": 1573645080000 * 10**6, "count": 0, "interval_s": seconds, "closed": False}]


def test_a_24_hour_sum_with_more_digits_than_the_row_is_rounded_and_flagged_not_refused():
    event, = venue().events(frame("chart.trades.BTC-PERPETUAL.1", CANDLE | {"volume": 52.75}))
    assert event["volume"] == D(53) and event["flags"] == LAST | INEXACT


def test_a_mark_price_with_more_digits_than_the_row_asks_for_them():
    made = venue({"ETH-30JUL21-2800-C": (-4, 0)})
    assert made.inspect(FRAMES["ticker option"])["error"] == "digits"
    assert made.inspect(FRAMES["ticker option"], accept_inexact=True)["events"][1]["flags"] == LAST | INEXACT


# -- order, truncation, unknown keys -------------------------------------------------------------------------

def reversed_keys(value):
    if isinstance(value, dict):
        return {key: reversed_keys(value[key]) for key in reversed(value)}
    return [reversed_keys(item) for item in value] if isinstance(value, list) else value


def orders(value):
    """The object with its keys in every order (at most 24 of them), and reversed."""
    for order in itertools.islice(itertools.permutations(value), 24):
        yield {key: value[key] for key in order}
    yield {key: value[key] for key in reversed(value)}


def same(events):
    return [{key: str(value) if value != value else value for key, value in event.items()} for event in events]


@pytest.mark.parametrize("name", FRAMES)
def test_the_order_of_keys_means_nothing(name):
    made, message = venue(), json.loads(FRAMES[name])
    expected, data = same(made.events(FRAMES[name])), message["params"]["data"]
    for shuffled in orders(message):
        assert same(made.events(text(shuffled))) == expected
    for params in orders(message["params"]):
        assert same(made.events(text(message | {"params": params}))) == expected
    row = data[0] if isinstance(data, list) else data
    for shuffled in orders(row):
        given = [shuffled] + data[1:] if isinstance(data, list) else shuffled
        assert same(made.events(frame(message["params"]["channel"], given))) == expected
    assert same(made.events(text(reversed_keys(message)))) == expected


@pytest.mark.parametrize("name", FRAMES)
def test_a_frame_cut_anywhere_gives_no_event_whatever_lies_behind_it(name):
    made, payload = venue(), FRAMES[name]
    for size in range(len(payload)):
        for behind in (b"", payload[size:]):
            seen = made.inspect(payload[:size], behind)
            assert seen["status"] < 0 and not seen["events"] and not seen["control"], (size, seen)
            assert not seen["ignored"] and not seen["unlisted"]


@pytest.mark.parametrize("name", FRAMES)
def test_bytes_behind_the_object_are_refused(name):
    assert venue().inspect(FRAMES[name] + b"x")["error"] == "malformed"


@pytest.mark.parametrize("name", FRAMES)
def test_unknown_keys_are_skipped_wherever_they_stand(name):
    made, message = venue(), json.loads(FRAMES[name])
    noise = {"zz": {"bids": [["new", 1, 2]], "price": None}, "y": [1, "\\\"", {}], "x": -1e5}
    data = message["params"]["data"]
    noisy = [noise | row for row in data] if isinstance(data, list) else noise | data
    given = noise | message | {"params": noise | message["params"] | {"data": noisy}}
    assert same(made.events(text(given))) == same(made.events(FRAMES[name]))


REQUIRED = [("book change", key) for key in ("type", "timestamp", "change_id", "prev_change_id", "bids", "asks")] \
    + [("book snapshot", key) for key in ("type", "timestamp", "change_id", "bids", "asks")] \
    + [("book window", key) for key in ("timestamp", "change_id", "bids", "asks")] \
    + [("quote", key) for key in ("timestamp", "best_bid_price", "best_bid_amount", "best_ask_price", "best_ask_amount")] \
    + [("trades", key) for key in ("timestamp", "price", "amount", "direction", "instrument_name", "trade_id")] \
    + [("ticker option", key) for key in ("timestamp", "last_price", "mark_price")] \
    + [("perpetual", key) for key in ("timestamp", "interest")] + [("price index", key) for key in ("timestamp", "price")] \
    + [("chart", key) for key in ("tick", "open", "high", "low", "close", "volume")]


@pytest.mark.parametrize("name, key", REQUIRED)
def test_a_message_without_a_field_its_kind_needs_is_refused(name, key):
    message = json.loads(FRAMES[name])
    data = message["params"]["data"]
    del (data[1] if isinstance(data, list) else data)[key]
    seen = venue().inspect(text(message))
    assert seen["error"] == "missing" and not seen["events"]


def test_a_change_with_a_null_predecessor_is_refused():
    assert venue().inspect(frame("book.BTC-PERPETUAL.100ms", CHANGE | {"prev_change_id": None}))["error"] == "missing"


@pytest.mark.parametrize("name, change, error", [
    ("book change", {"type": "replace"}, "unknown"), ("book change", {"change_id": -1}, "range"),
    ("book change", {"bids": [["new", 1.0]]}, "missing"), ("book change", {"bids": [["new", "x", 1]]}, "malformed"),
    ("quote", {"best_bid_price": True}, "malformed"), ("perpetual", {"timestamp": 10**17}, "range")])
def test_a_bad_value_is_named(name, change, error):
    message = json.loads(FRAMES[name])
    message["params"]["data"] |= change
    assert venue().inspect(text(message))["error"] == error


@pytest.mark.parametrize("payload", [
    b"", b"{}", b"[]", b"null", text({"jsonrpc": "2.0", "method": "subscription", "params": {"channel": "book.X.100ms"}}),
    text({"method": "subscription"}), text({"params": {"channel": "quote.BTC-PERPETUAL", "data": QUOTE}}),
    text({"method": "other", "params": {"channel": "quote.BTC-PERPETUAL", "data": QUOTE}}),
    frame("markprice.options.btc_usd", []), frame("chart.trades.BTC-PERPETUAL.x", CANDLE), frame("", {}), frame("user.orders.X.raw", {})])
def test_what_is_neither_data_nor_control_is_an_error(payload):
    seen = venue().inspect(payload)
    assert seen["status"] < 0 and not seen["control"] and not seen["events"]


@pytest.mark.parametrize("name", FRAMES)
def test_symbols_that_are_not_listed_are_counted_and_leave_no_trace(name):
    seen = venue({"OTHER": (-2, -2)}).inspect(FRAMES[name])
    data = json.loads(FRAMES[name])["params"]["data"]
    assert seen["status"] == 0 and not seen["events"] and seen["unlisted"] == (len(data) if isinstance(data, list) else 1)


def test_changes_of_the_instrument_list_are_dropped_on_purpose():
    seen = venue().inspect(frame("instrument.state.any.any", {"timestamp": 1553080940000, "state": "created", "instrument_name": "X"}))
    assert (seen["status"], seen["ignored"]) == (0, 1)


@pytest.mark.parametrize("name", FRAMES)
def test_a_frame_with_any_byte_changed_is_decoded_or_refused_whole(name):
    made, random_ = venue(), random.Random(name)
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

@pytest.mark.parametrize("prev, change, verdict, last", [
    (100, 150, "apply", 150), (100, 101, "apply", 101),  # ids jump
    (101, 150, "gap", 100), (99, 150, "gap", 100),       # a hole, an overlap
    (90, 100, "old", 100), (50, 60, "old", 100)])        # seen before
def test_a_change_follows_the_change_id_before_it(prev, change, verdict, last):
    event, = venue().events(frame("book.BTC-PERPETUAL.100ms", CHANGE | {"prev_change_id": prev, "change_id": change}))
    assert venue().chain_step("live", 100, event) == (verdict, "live", last)


@pytest.mark.parametrize("state, last", [("waiting", 0), ("live", 5), ("live", 2**60)])
@pytest.mark.parametrize("name", ["book snapshot", "book window"])
def test_a_snapshot_or_window_starts_the_chain_anew(state, last, name):
    event, = venue().events(FRAMES[name])
    assert venue().chain_step(state, last, event) == ("apply", "live", event["last"])


def test_a_late_event_time_changes_nothing():
    event, = venue().events(frame("book.BTC-PERPETUAL.100ms", CHANGE | {"timestamp": 1, "prev_change_id": 100}))
    assert event["ts_event_ns"] == 10**6 and venue().chain_step("live", 100, event)[0] == "apply"


# -- control -------------------------------------------------------------------------------------------------

ACCEPTED = ["book.ETH-PERPETUAL.100ms", "book.BTC_USDC-PERPETUAL.none.20.100ms"]
CONTROL = [
    ({"jsonrpc": "2.0", "id": 3, "result": ACCEPTED, "usIn": 1790133840888348, "usOut": 1790133840889867, "usDiff": 1519,
      "testnet": False}, [Ack(3, wires=tuple(ACCEPTED))]),
    ({"jsonrpc": "2.0", "id": 4, "result": [], "usIn": 1, "usOut": 2, "usDiff": 1, "testnet": False}, [Ack(4, wires=())]),
    ({"jsonrpc": "2.0", "id": 1, "error": {"code": 10028, "message": "too_many_requests", "data": None}},
     [Ack(1, accepted=False, reason="10028 too_many_requests")]),
    ({"jsonrpc": "2.0", "id": 5, "error": {"code": 13778, "message": "raw_subscriptions_not_available_for_unauthorized"},
      "usIn": 1, "usOut": 2, "usDiff": 1, "testnet": False},
     [Ack(5, accepted=False, reason="13778 raw_subscriptions_not_available_for_unauthorized")]),
    ({"jsonrpc": "2.0", "error": {"code": 11050, "data": "invalid json", "message": "bad_request"}, "usIn": 1, "testnet": False},
     [Complaint("11050", "bad_request invalid json")]),
    ({"jsonrpc": "2.0", "id": 0, "error": {"code": 10028, "message": "too_many_requests"}}, [Complaint("10028", "too_many_requests")]),
    ({"jsonrpc": "2.0", "method": "heartbeat", "params": {"type": "test_request"}},
     [Reply('{"jsonrpc":"2.0","id":0,"method":"public/test","params":{}}')]),
    ({"jsonrpc": "2.0", "method": "heartbeat", "params": {"type": "heartbeat"}}, [Alive()]),
    ({"jsonrpc": "2.0", "id": 0, "result": {"version": "1.2.26"}, "usIn": 1, "testnet": False}, [Alive()]),
    ({"jsonrpc": "2.0", "id": 0, "result": "ok", "usIn": 1}, [Alive()]),
    ({"jsonrpc": "2.0", "method": "subscription", "params": {"channel": "platform_state",
                                                             "data": {"locked": True, "price_index": "btc_usd"}}}, [Alive()]),
    ({"jsonrpc": "2.0", "method": "subscription", "params": {"channel": "platform_state", "data": {"maintenance": True}}},
     [Closing("platform_state: maintenance")]),
]


@pytest.mark.parametrize("message, expected", CONTROL)
def test_a_control_frame_is_told_from_data_and_explained_in_any_order_of_keys(message, expected):
    for given in (message, reversed_keys(message)):
        seen = venue().inspect(text(given))
        assert seen["control"] and seen["status"] == 0 and not seen["events"]
    assert venue().control(text(message)) == expected


@pytest.mark.parametrize("message", [{"error": "x"}, {"error": None, "id": "a"}, {"result": None}, {"id": 1, "result": {}},
                                     {"method": "heartbeat"}, {"method": "heartbeat", "params": {"type": 5}}])
def test_an_odd_control_frame_is_explained_without_an_exception(message):
    assert venue().inspect(text(message))["control"] and len(venue().control(text(message))) == 1


def test_the_heartbeat_is_asked_for_on_open_within_what_the_venue_allows():
    message, = map(json.loads, venue().on_open("v2"))
    assert message["method"] == "public/set_heartbeat" and 10 <= message["params"]["interval"] <= 30 and message["id"] == 0
    assert venue().ping("v2", 1) is None


# -- streams and requests ------------------------------------------------------------------------------------

@pytest.mark.parametrize("symbol, asked, wire, channel, depth, snapshot", [
    ("BTC-PERPETUAL", "trade", "trades.BTC-PERPETUAL.100ms", "trade", 0, ""),
    ("BTC-PERPETUAL", "trade@agg2", "trades.BTC-PERPETUAL.agg2", "trade", 0, ""),
    ("BTC-PERPETUAL", "liquidation", "trades.BTC-PERPETUAL.100ms", "trade", 0, ""),
    ("BTC-PERPETUAL", "quote", "quote.BTC-PERPETUAL", "quote", 0, ""),
    ("BTC-PERPETUAL", "book", "book.BTC-PERPETUAL.100ms", "book", 0, "in_band"),
    ("BTC-PERPETUAL", "book@agg2", "book.BTC-PERPETUAL.agg2", "book", 0, "in_band"),
    ("BTC-PERPETUAL", "book20", "book.BTC-PERPETUAL.none.20.100ms", "book", 20, "window"),
    ("BTC-PERPETUAL", "book1@100ms", "book.BTC-PERPETUAL.none.1.100ms", "book", 1, "window"),
    ("BTC-PERPETUAL", "funding", "ticker.BTC-PERPETUAL.100ms", "ticker", 0, ""),
    ("BTC-PERPETUAL", "funding@100ms", "perpetual.BTC-PERPETUAL.100ms", "funding", 0, ""),
    ("BTC-PERPETUAL", "index", "ticker.BTC-PERPETUAL.100ms", "ticker", 0, ""),
    ("btc_usd", "index", "deribit_price_index.btc_usd", "index", 0, ""),
    ("BTC-24SEP21-8000-P", "greeks", "ticker.BTC-24SEP21-8000-P.100ms", "ticker", 0, ""),
    ("BTC-PERPETUAL", "candle@1h", "chart.trades.BTC-PERPETUAL.60", "candle", 0, "")]
    + [("BTC-PERPETUAL", name, "ticker.BTC-PERPETUAL.100ms", "ticker", 0, "") for name in ("ticker", "mark", "open_interest")])
def test_a_channel_becomes_the_venues_own_name(symbol, asked, wire, channel, depth, snapshot):
    stream = venue().stream(symbol, Channel.parse(asked))
    assert (stream.endpoint, stream.wire, stream.symbol, stream.channel) == ("v2", wire, symbol, channel)
    assert (stream.depth, stream.snapshot) == (depth, snapshot)
    assert (stream.first_data_s == 0) == (channel in ("trade", "candle"))


@pytest.mark.parametrize("symbol, asked, hint", [
    ("BTC-PERPETUAL", "book@raw", "login"), ("BTC-PERPETUAL", "trade@raw", "login"), ("BTC-PERPETUAL", "book5", "book10"),
    ("BTC-PERPETUAL", "book20@agg2", "book20"), ("BTC-PERPETUAL", "candle@7m", "15m"), ("BTC-26DEC26", "funding", "perpetuals"),
    ("BTC-PERPETUAL", "greeks", "options"), ("BTC-PERPETUAL", "agg_trade", "trade"), ("BTC-PERPETUAL", "instrument", "ticker"),
    ("BTC-PERPETUAL", "trade@10ms", "100ms"), ("", "trade", "BTC-25DEC26"), ("BTC.X", "book", "BTC-25DEC26"), ("A" * 49, "book", "BTC_USDC"), ("BTC-PERPETUAL", "book@10ms", "100ms")])
def test_what_deribit_does_not_serve_is_refused_with_what_to_ask_instead(symbol, asked, hint):
    with pytest.raises(VenueError, match=hint):
        venue().stream(symbol, Channel.parse(asked))


def test_a_call_names_at_most_500_channels():
    made = venue()
    streams = [made.stream(f"X{number}-PERPETUAL", Channel("book")) for number in range(1001)]
    calls = made.subscribe("v2", streams, 7)
    assert [(number, len(part)) for number, _, part in calls] == [(7, 500), (8, 500), (9, 1)]
    for number, sent, part in calls:
        message = json.loads(sent)
        assert message == {"jsonrpc": "2.0", "id": number, "method": "public/subscribe",
                           "params": {"channels": [stream.wire for stream in part]}}
    assert json.loads(made.unsubscribe("v2", streams[:1], 1)[0][1])["method"] == "public/unsubscribe"
    assert made.subscribe("v2", [], 1) == []


# -- instruments ---------------------------------------------------------------------------------------------

def listed(**fields):
    row = {"tick_size": 0.5, "settlement_period": "perpetual", "quote_currency": "USD", "min_trade_amount": 10, "kind": "future",
           "is_active": True, "instrument_name": "BTC-PERPETUAL", "instrument_type": "reversed", "contract_size": 10.0,
           "expiration_timestamp": 32503708800000, "base_currency": "BTC"}
    return venue().instruments([text({"jsonrpc": "2.0", "result": [row | fields]})])


def test_instruments_of_every_kind():
    inverse, = listed()
    assert (inverse.canonical, inverse.kind, inverse.tick, inverse.lot, inverse.multiplier, inverse.inverse, inverse.expiry_ns) == (
        "BTC-USD-PERP", "perpetual", "0.5", "10", "1", True, 0)
    linear, = listed(instrument_name="BTC_USDC-PERPETUAL", instrument_type="linear", min_trade_amount=0.0001)
    assert (linear.canonical, linear.lot, linear.inverse) == ("BTC-USDC-PERP", "0.0001", False)
    future, = listed(instrument_name="BTC-25DEC26", settlement_period="month", expiration_timestamp=1798185600000)
    assert (future.canonical, future.kind, future.expiry_ns) == ("BTC-USD-20261225", "future", 1798185600000 * 10**6)
    option, = listed(instrument_name="BTC-25DEC26-100000-C", kind="option", option_type="call", strike=100000.0, tick_size=0.0001,
                     settlement_period="month", expiration_timestamp=1798185600000, min_trade_amount=0.1)
    assert (option.canonical, option.kind, option.strike, option.inverse) == ("BTC-USD-20261225-100000-C", "option", "100000", False)
    small, = listed(instrument_name="XRP_USDC-25DEC26-0d55-P", kind="option", option_type="put", strike=0.55, instrument_type="linear",
                    settlement_period="month", expiration_timestamp=1798185600000)
    assert small.canonical == "XRP-USDC-20261225-0.55-P"
    spot, = listed(instrument_name="BTC_USDC", kind="spot", settlement_period=None, instrument_type="linear")
    assert (spot.canonical, spot.kind) == ("BTC-USDC", "spot")


def test_combos_are_left_out_and_an_instrument_listed_twice_is_one():
    assert listed(kind="option_combo") == [] and listed(kind="future_combo") == []
    body = text({"result": [{"tick_size": 1e-05, "kind": "spot", "min_trade_amount": 1, "instrument_name": "A_B", "is_active": False}]})
    row, = venue().instruments([body, body])
    assert row.tick == "0.00001" and not row.listed


def test_a_refused_list_says_why():
    with pytest.raises(VenueError, match="10028"):
        venue().instruments([b'{"jsonrpc":"2.0","error":{"code":10028,"message":"too_many_requests"}}'])


def test_each_currency_is_asked_for():
    paths = [request.path for request in venue().instrument_requests()]
    assert all(path.startswith("/api/v2/public/get_instruments?currency=") and path.endswith("&expired=false") for path in paths)
    assert {"BTC", "ETH", "USDC", "USDT"} <= {path.partition("currency=")[2].partition("&")[0] for path in paths}


# -- recorded traffic ----------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def recorded():
    path = CAPTURES / "deribit_2021.head.tsv.gz"
    if not path.exists():
        pytest.skip(f"no recording at {path}; set FEEDHANDLER_CAPTURES")
    return [line.split("\t", 3)[2:] for line in gzip.open(path, "rt", newline="\n").read().split("\n") if line]


def wanted_ticker(row):
    """Kind -> fields the text of a recorded option ticker asks for."""
    greeks, stats = row["greeks"], row["stats"]
    return {"ticker": {"last": row["last_price"], "high": stats["high"], "low": stats["low"], "volume": stats["volume"]},
            "mark": {"price": row["mark_price"]}, "index": {"price": row["index_price"]},
            "open_interest": {"size": row["open_interest"]},
            "greeks": {name: float(greeks[name]) for name in greeks} | {
                name: float(row[name]) / 100 for name in ("bid_iv", "ask_iv", "mark_iv")} | {
                "underlying": float(row["underlying_price"]), "rate": float(row["interest_rate"])}}


def wanted_book(row):
    return {"last": row["change_id"], "prev": row.get("prev_change_id"), "snapshot": row["type"] == "snapshot",
            "levels": [(side, price, size) for side, levels in (("bid", row["bids"]), ("ask", row["asks"]))
                       for _, price, size in levels]}


def test_every_recorded_frame_decodes_to_what_its_text_says(recorded):
    made = deribit.VENUE(8192)
    bodies = [payload.partition(" ")[2].encode() for direction, payload in recorded if direction == "rest"]
    instruments = made.instruments(bodies)
    ids = {row.symbol: id for id, row in enumerate(instruments)}
    for row in instruments:  # mark prices have up to nine digits, open interest one
        made.add_instrument(ids[row.symbol], row.symbol, -9, -1)
    kinds, chains = {}, {}
    for payload in (payload for direction, payload in recorded if direction == "in"):
        message, seen = json.loads(payload, parse_float=D), made.inspect(payload.encode())
        if "result" in message:
            assert seen["control"] and made.control(payload.encode())[0].wires == tuple(message["result"])
            continue
        row = message["params"]["data"]
        assert not seen["error"], (seen, payload)
        wanted = {"book": wanted_book(row)} if "bids" in row else wanted_ticker(row)
        assert [event["kind"] for event in seen["events"]] == list(wanted)
        for event in seen["events"]:
            fields = wanted[event["kind"]]
            assert {key: event[key] for key in fields} == fields and event["instrument"] == ids[row["instrument_name"]]
            assert event["ts_event_ns"] == row["timestamp"] * 1_000_000
            kinds[event["kind"]] = kinds.get(event["kind"], 0) + 1
        if "bids" in row:
            state, last = chains.get(event["instrument"], ("waiting", 0))
            verdict, *chains[event["instrument"]] = made.chain_step(state, last, event)
            assert verdict == "apply"
    assert kinds == {"book": 36, "ticker": 62, "mark": 62, "index": 62, "open_interest": 62, "greeks": 62}
