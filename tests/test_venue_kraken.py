"""Kraken spot v2: recorded and documented frames in, events out, and everything the control plane says."""
import itertools
import json
import os
import tempfile
import zlib
from decimal import Decimal

import pytest

from feedhandler import venues
from feedhandler.venue import Ack, Alive, Channel, Closing, Complaint, VenueError
from feedhandler.worker.publisher import Publisher

# Recorded 2026-08-24, uncut, one sequence.
RECORDED = [
    b'{"channel":"book","type":"snapshot","data":[{"symbol":"BTC/USD","bids":[{"price":78871.5,"qty":0.01266503},{"price":78868.4,"qty":0.00005100},{"price":78867.3,"qty":0.00059789},{"price":78865.8,"qty":0.00030000},{"price":78865.7,"qty":0.01532403},{"price":78864.5,"qty":0.00005100},{"price":78860.6,"qty":0.04618528},{"price":78860.5,"qty":0.00005100},{"price":78859.2,"qty":0.20128607},{"price":78858.8,"qty":0.63404462}],"asks":[{"price":78871.6,"qty":4.21103066},{"price":78872.2,"qty":0.41892437},{"price":78872.5,"qty":0.08877452},{"price":78873.7,"qty":0.64976822},{"price":78875.5,"qty":0.63391066},{"price":78876.2,"qty":0.02287157},{"price":78877.2,"qty":0.00810675},{"price":78877.8,"qty":0.65087492},{"price":78877.9,"qty":1.89408049},{"price":78878.0,"qty":4.52243185}],"checksum":1406471562,"timestamp":"2026-08-24T22:21:57.110183Z"}]}',
    b'{"channel":"book","type":"update","data":[{"symbol":"BTC/USD","bids":[{"price":78858.8,"qty":0.00000000},{"price":78857.0,"qty":0.34775324}],"asks":[],"checksum":2416540570,"timestamp":"2026-08-24T22:21:58.343688Z"}]}',
    b'{"channel":"book","type":"update","data":[{"symbol":"BTC/USD","bids":[{"price":78859.2,"qty":0.01378631}],"asks":[],"checksum":2136263304,"timestamp":"2026-08-24T22:21:58.344941Z"}]}',
    b'{"channel":"book","type":"update","data":[{"symbol":"BTC/USD","bids":[{"price":78859.2,"qty":0.00000000},{"price":78856.8,"qty":0.60870868}],"asks":[],"checksum":2126323084,"timestamp":"2026-08-24T22:21:58.345080Z"}]}',
]
TRADE = b'{"channel":"trade","type":"update","data":[{"symbol":"BTC/USD","side":"buy","price":105944.2,"qty":0.00027625,"ord_type":"limit","trade_id":10218208,"timestamp":"2023-10-06T17:35:55.440295Z"}]}'
TICKER = b'{"channel":"ticker","type":"update","data":[{"symbol":"BTC/USD","bid":63500.1,"bid_qty":1.25,"ask":63500.2,"ask_qty":0.84,"last":63500.2,"volume":4210.42,"vwap":62980.75,"low":61800.0,"high":64120.0,"change":880.2,"change_pct":1.41,"timestamp":"2026-07-26T12:00:00.123456789Z"}]}'
OHLC = b'{"channel":"ohlc","type":"update","timestamp":"2023-10-04T16:26:30.524394914Z","data":[{"symbol":"BTC/USD","open":27500.1,"high":27501.0,"low":27499.9,"close":27500.5,"trades":12,"volume":2.34508192,"vwap":27500.2,"interval_begin":"2023-10-04T16:25:00.000000000Z","interval":5,"timestamp":"2023-10-04T16:30:00.000000Z"}]}'
ACK = b'{"method":"subscribe","result":{"channel":"book","depth":10,"snapshot":true,"symbol":"BTC/USD"},"success":true,"time_in":"2026-08-24T22:21:56.724795Z","time_out":"2026-08-24T22:21:56.724853Z"}'


@pytest.fixture
def venue():
    kraken = venues.load("kraken", 8)
    kraken.add_instrument(3, "BTC/USD", -1, -8)
    return kraken


@pytest.fixture
def published():
    """A function that feeds frames at a depth and answers (book_stats, exponents)."""
    directory = tempfile.mkdtemp(prefix=f"test-{os.getpid()}-", dir="/dev/shm")
    made = []

    def feed(frames, depth, exponents=(-1, -8)):
        kraken = venues.load("kraken", 8)
        kraken.add_instrument(0, "BTC/USD", *exponents)
        fd = os.open(directory, os.O_RDONLY)
        publisher = Publisher(fd, len(made), 1 << 12, 8, 100)
        os.close(fd)
        made.append(publisher)
        publisher.add_stream(kraken, 0, "book", depth, "in_band")
        for frame in frames:
            publisher.feed(kraken, 1, frame, 1)
        return publisher.book_stats(0), kraken.exponents(0)
    yield feed
    for publisher in made:
        publisher.close()
    for name in os.listdir(directory):
        os.unlink(f"{directory}/{name}")
    os.rmdir(directory)


def book_frame(kind, bids, asks, checksum):
    rows = ["[" + ",".join(f'{{"price":{price},"qty":{qty}}}' for price, qty in side) + "]" for side in (bids, asks)]
    return (f'{{"channel":"book","type":"{kind}","data":[{{"symbol":"BTC/USD","bids":{rows[0]},"asks":{rows[1]},'
            f'"checksum":{checksum},"timestamp":"2026-08-24T22:21:57.110183Z"}}]}}').encode()


def crc(bids, asks):
    rows = sorted(asks, key=lambda row: Decimal(row[0]))[:10] + sorted(bids, key=lambda row: -Decimal(row[0]))[:10]
    return zlib.crc32("".join(value.replace(".", "").lstrip("0") for row in rows for value in row).encode())


# -- books ----------------------------------------------------------------------------------------------------

def test_the_recorded_sequence_keeps_every_checksum(published):
    stats, _ = published(RECORDED, 10)
    assert (stats["state"], stats["checksum_ok"], stats["checksum_bad"], stats["levels"]) == ("LIVE", 4, 0, [10, 10])


def test_digits_are_learnt_as_written_trailing_zeros_included(published):
    stats, exponents = published(RECORDED, 10, exponents=(0, 0))
    assert stats["checksum_ok"] == 4 and exponents == (-1, -8)
    bids, asks = [("100.00000", "1.00000000")], [("101.00000", "2.00000000")]
    stats, exponents = published([book_frame("snapshot", bids, asks, crc(bids, asks))], 10, exponents=(0, 0))
    assert stats["checksum_ok"] == 1 and exponents == (-5, -8)


def test_the_checksum_is_over_the_digits_sent_whatever_digits_the_row_has(published):
    stats, exponents = published(RECORDED, 10, exponents=(-4, -10))
    assert stats["checksum_ok"] == 4 and exponents == (-4, -10)
    finer = TRADE.replace(b"105944.2", b"78871.1234")
    assert b"78871.1234" in finer
    stats, exponents = published([*RECORDED[:2], finer, *RECORDED[2:]], 10)
    assert stats["checksum_ok"] == 4 and stats["checksum_bad"] == 0 and exponents == (-4, -8), "raised between two messages of the book"


def test_the_documented_checksum_vector_holds(published):
    asks = [row.split(":") for row in "45285.2:0.00100000 45286.4:1.54571953 45286.6:1.54571109 45289.6:1.54560911 "
            "45290.2:0.15890660 45291.8:1.54553491 45294.7:0.04454749 45296.1:0.35380000 45297.5:0.09945542 "
            "45299.5:0.18772827".split()]
    bids = [row.split(":") for row in "45283.5:0.10000000 45283.4:1.54582015 45282.1:0.10000000 45281.0:0.10000000 "
            "45280.3:1.54592586 45279.0:0.07990000 45277.6:0.03310103 45277.5:0.30000000 45277.3:1.54602737 "
            "45276.6:0.15445238".split()]
    assert published([book_frame("snapshot", bids, asks, 3310070434)], 25)[0]["checksum_ok"] == 1
    assert published([book_frame("snapshot", bids, asks, 3310070435)], 25)[0]["checksum_bad"] == 1


def test_without_truncation_old_levels_would_come_back_and_break_the_checksum(published):
    bids = [(f"{90 + i}.0", "1.00000000") for i in range(10)]
    asks = [("200.0", "1.00000000")]
    after = bids[1:] + [("100.0", "1.00000000")]
    last = after[:-1]
    frames = [book_frame("snapshot", bids, asks, crc(bids, asks)),
              book_frame("update", [("100.0", "1.00000000")], [], crc(after, asks)),
              book_frame("update", [("100.0", "0.00000000")], [], crc(last, asks))]
    assert published(frames, 10)[0]["checksum_ok"] == 3
    assert published(frames, 25)[0]["checksum_bad"] == 1


def test_a_price_that_comes_twice_in_one_message_has_its_last_size(published):
    bids, asks = [("90.0", "1.00000000")], [("91.0", "1.00000000")]
    twice = [("90.0", "5.00000000"), ("90.0", "7.00000000")]
    frames = [book_frame("snapshot", bids, asks, crc(bids, asks)), book_frame("update", twice, [], crc(twice[1:], asks))]
    assert published(frames, 10)[0]["checksum_ok"] == 2


def test_a_book_message_says_what_it_says(venue):
    event, = venue.events(RECORDED[1])
    assert event["instrument"] == 3 and event["channel"] == "book" and not event["snapshot"] and event["checksum"] == 2416540570
    assert event["levels"] == [("bid", Decimal("78858.8"), 0), ("bid", Decimal("78857"), Decimal("0.34775324"))]
    assert event["ts_event_ns"] == 1_787_610_118_343_688_000 and event["last"] == 0
    assert venue.events(RECORDED[0])[0]["snapshot"]


def shuffled(frame):
    """The same message with the keys of its envelope and of its element in other orders."""
    message = json.loads(frame, parse_float=Decimal)
    element = message["data"][0]
    for keys in itertools.permutations(message):
        yield {key: message[key] for key in keys}
    for turn in range(len(element)):
        keys = list(element)[turn:] + list(element)[:turn]
        yield {**message, "data": [{key: element[key] for key in keys}]}
        yield {**message, "data": [{key: element[key] for key in reversed(keys)}]}


def text_of(message):
    """JSON text of a message whose numbers are Decimals, digits kept."""
    if isinstance(message, dict):
        return "{" + ",".join(f"{json.dumps(key)}:{text_of(value)}" for key, value in message.items()) + "}"
    if isinstance(message, list):
        return "[" + ",".join(map(text_of, message)) + "]"
    return str(message) if isinstance(message, Decimal) else json.dumps(message)


def bids_first(events):
    """Levels come in message order; the publisher parts the sides."""
    return [{**event, "levels": sorted(event.get("levels", ()), key=lambda level: level[0] == "ask")} for event in events]


@pytest.mark.parametrize("frame", [RECORDED[0], RECORDED[1], TRADE, TICKER, OHLC])
def test_no_order_of_keys_changes_what_is_decoded(venue, frame):
    expected = bids_first(venue.events(frame))
    assert len(expected) == 1
    for message in shuffled(frame):
        assert bids_first(venue.events(text_of(message).encode())) == expected


@pytest.mark.parametrize("frame", [RECORDED[1], TRADE, TICKER, OHLC, ACK])
def test_a_frame_cut_anywhere_is_refused_whatever_follows_it(venue, frame):
    for size in range(len(frame)):
        seen = venue.inspect(frame[:size], behind=frame[size:])
        assert seen["status"] < 0 and not seen["events"] and not seen["control"], frame[:size]
    assert venue.inspect(frame + b"x")["status"] < 0
    assert venue.inspect(frame)["status"] >= 0


@pytest.mark.parametrize("frame, old, new, error", [
    (RECORDED[1], b'"asks":[]', b'"bids":[]', "malformed"),
    (RECORDED[1], b'"type":"update"', b'"data":[]', "malformed"),
    (RECORDED[1], b'"type":"update"', b'"kind":"update"', "missing"),
    (RECORDED[1], b'"type":"update"', b'"type":"delta"', "unknown"),
    (RECORDED[1], b'"channel":"book"', b'"channel":"level3"', "unknown"),
    (RECORDED[1], b'"symbol":"BTC/USD",', b'', "missing"),
    (RECORDED[1], b'"checksum":2416540570', b'"checksum":4294967296', "range"),
    (RECORDED[1], b'"qty":0.34775324', b'"quantity":0.34775324', "missing"),
    (TRADE, b'"price":105944.2,', b'', "missing"),
    (TRADE, b'"side":"buy",', b'', "missing"),
    (TRADE, b'"side":"buy"', b'"side":"both"', "missing"),
    (TRADE, b'"trade_id":10218208,', b'', "missing"),
    (TRADE, b'"price":105944.2', b'"price":105944.2,"price":1.0', "malformed"),
    (TICKER, b'"bid_qty":1.25,', b'', "missing"),
    (OHLC, b'"open":27500.1,', b'', "missing"),
    (OHLC, b'"interval":5', b'"interval":50000', "range"),
])
def test_a_frame_with_a_fault_is_refused_by_name(venue, frame, old, new, error):
    assert old in frame
    assert venue.inspect(frame.replace(old, new))["error"] == error


def test_a_symbol_not_listed_is_counted_and_leaves_no_levels(venue):
    seen = venue.inspect(RECORDED[1].replace(b"BTC/USD", b"ETH/USD"))
    assert seen["unlisted"] == 1 and seen["status"] == 0 and seen["events"] == []


# -- trades, tickers, candles ---------------------------------------------------------------------------------

def test_a_trade_has_the_takers_side_and_its_id(venue):
    event, = venue.events(TRADE)
    assert (event["kind"], event["price"], event["size"], event["aggressor"]) == ("trade", Decimal("105944.2"), Decimal("0.00027625"), "bid")
    assert event["trade_id"] == event["sequence"] == 10218208 and event["ts_event_ns"] == 1_696_613_755_440_295_000
    assert venue.events(TRADE.replace(b'"buy"', b'"sell"'))[0]["aggressor"] == "ask"


def test_past_trades_are_history_and_no_events(venue):
    seen = venue.inspect(TRADE.replace(b'"update"', b'"snapshot"'))
    assert seen["events"] == [] and seen["ignored"] == 1 and seen["status"] == 0


def test_a_ticker_is_a_quote_or_a_ticker_as_it_was_subscribed(venue):
    event, = venue.events(TICKER)
    assert (event["kind"], event["bid_price"], event["ask_size"]) == ("quote", Decimal("63500.1"), Decimal("0.84"))
    venue.subscribe("spot.v2", [venue.stream("BTC/USD", Channel("ticker"))], 1)
    event, = venue.events(TICKER)
    assert (event["kind"], event["last"], event["high"], event["volume"]) == ("ticker", Decimal("63500.2"), Decimal("64120"), Decimal("4210.42"))
    assert event["average"] == 62980.75 and not event["flags"] & 32, "an average needs no digits of the instrument"
    venue.control(b'{"method":"subscribe","result":{"channel":"ticker","event_trigger":"bbo","symbol":"BTC/USD"},"success":true}')
    assert venue.events(TICKER)[0]["kind"] == "quote"


def test_a_candle_starts_where_its_interval_begins(venue):
    event, = venue.events(OHLC)
    assert (event["open"], event["high"], event["low"], event["close"]) == tuple(map(Decimal, ("27500.1", "27501.0", "27499.9", "27500.5")))
    assert (event["volume"], event["count"], event["interval_s"]) == (Decimal("2.34508192"), 12, 300)
    assert event["start_ns"] == 1_696_436_700_000_000_000 and event["quote_volume"] is None


def test_unknown_fields_of_every_type_are_skipped(venue):
    more = b'"x":null,"y":[1,{"price":7,"data":[]}],"z":{"qty":"1"},"w":"\\u00e9\\"","v":-1.5e3,"u":true,'
    frame = TRADE.replace(b'"symbol"', more + b'"symbol"').replace(b'{"channel"', b'{' + more + b'"channel"')
    assert venue.events(frame) == venue.events(TRADE)


# -- control plane --------------------------------------------------------------------------------------------

@pytest.mark.parametrize("frame, meant", [
    (b'{"channel":"heartbeat"}', [Alive()]),
    (b'{"method":"pong","req_id":42,"time_in":"2023-09-25T09:05:00.123456Z"}', [Alive()]),
    (b'{"channel":"status","type":"update","data":[{"version":"2.0.10","system":"online","api_version":"v2","connection_id":17843232920108168701}]}', [Alive()]),
    (b'{"channel":"status","type":"update","data":[{"system":"maintenance"}]}', [Alive(), Closing("the venue goes into maintenance")]),
    (b'{"channel":"status","type":"update","data":[{"system":"cancel_only"}]}', [Alive(), Complaint("status", "the venue is cancel_only")]),
    (b'{"Error":"Exceeded msg rate"}', [Complaint("rate", "Exceeded msg rate")]),
    (ACK, [Ack(0, '{"channel":"book","depth":10,"symbol":"BTC/USD"}')]),
])
def test_what_is_no_data_goes_to_control_and_is_understood(venue, frame, meant):
    seen = venue.inspect(frame)
    assert seen["control"] and seen["status"] == 0 and seen["events"] == []
    assert venue.control(frame) == meant


def test_the_instrument_channel_is_no_market_data(venue):
    seen = venue.inspect(b'{"channel":"instrument","type":"snapshot","data":{"assets":[],"pairs":[]}}')
    assert seen["ignored"] == 1 and seen["status"] == 0


def test_streams_of_one_kind_share_a_message_and_every_ack_finds_its_stream(venue):
    streams = [venue.stream(symbol, Channel.parse(channel)) for channel in ("book10", "trade", "quote", "candle@5m")
               for symbol in ("BTC/USD", "ETH/USD")]
    messages = venue.subscribe("spot.v2", streams, 7)
    assert [request for request, _, _ in messages] == [7, 8, 9, 10]
    assert sorted(stream.wire for _, _, part in messages for stream in part) == sorted(stream.wire for stream in streams)
    for request, text, part in messages:
        sent = json.loads(text)
        assert sent["method"] == "subscribe" and sent["req_id"] == request
        for symbol, stream in zip(sent["params"]["symbol"], part):
            answer = {"method": "subscribe", "result": {**sent["params"], "symbol": symbol}, "success": True, "req_id": request}
            assert venue.control(json.dumps(answer).encode()) == [Ack(request, stream.wire)]
    assert json.loads(messages[1][1])["params"] == {"channel": "trade", "snapshot": False, "symbol": ["BTC/USD", "ETH/USD"]}
    assert json.loads(venue.unsubscribe("spot.v2", streams[:1], 20)[0][1])["method"] == "unsubscribe"


def test_many_symbols_are_split_and_none_is_lost(venue):
    streams = [venue.stream(f"A{index}/USD", Channel("trade")) for index in range(101)]
    messages = venue.subscribe("spot.v2", streams, 1)
    assert [len(part) for _, _, part in messages] == [50, 50, 1] and [request for request, _, _ in messages] == [1, 2, 3]


def test_a_refusal_finds_the_one_stream_it_is_about(venue):
    streams = [venue.stream(symbol, Channel("trade")) for symbol in ("XBT/USD", "ETH/USD")]
    venue.subscribe("spot.v2", streams, 5)
    refusal = {"error": "Currency pair not supported XBT/USD", "method": "subscribe", "req_id": 5, "success": False}
    assert venue.control(json.dumps(refusal).encode()) == [Ack(5, streams[0].wire, False, refusal["error"])]
    refusal["error"] = "Trading agreement needed"
    assert venue.control(json.dumps(refusal).encode()) == [Complaint("subscribe", refusal["error"])]
    assert venue.control(json.dumps({**refusal, "symbol": "ETH/USD"}).encode()) == [Ack(5, streams[1].wire, False, refusal["error"])]


@pytest.mark.parametrize("channel, sentence", [
    ("book20", "books of depth 10, 25, 100, 500, 1000"), ("book@100ms", "at one speed"), ("mark", "no mark channel"),
    ("candle@2m", "no candles of '2m'"), ("trade5", "neither depth nor speed"), ("quote@10ms", "neither depth nor speed"),
])
def test_what_kraken_does_not_have_is_refused_with_what_it_has(venue, channel, sentence):
    with pytest.raises(VenueError, match=sentence):
        venue.stream("BTC/USD", Channel.parse(channel))


def test_the_fullest_book_is_asked_for_unless_told(venue):
    assert venue.stream("BTC/USD", Channel("book")).depth == 1000
    stream = venue.stream("BTC/USD", Channel.parse("book25"))
    assert (stream.depth, stream.snapshot) == (25, "in_band")


def test_control_that_is_no_json_is_a_complaint_and_no_crash(venue):
    for frame in (b"", b"[1]", b"\xff", b'"text"'):
        assert isinstance(venue.control(frame)[0], Complaint)


def test_asset_pairs_become_instruments_with_names_of_v2_and_digits_of_the_feed(venue):
    body = json.dumps({"error": [], "result": {
        "XXBTZUSD": {"altname": "XBTUSD", "wsname": "XBT\\/USD".replace("\\", ""), "pair_decimals": 1, "lot_decimals": 8,
                     "tick_size": "0.1", "status": "online"},
        "XDGUSD": {"altname": "XDGUSD", "wsname": "XDG/USD", "pair_decimals": 7, "lot_decimals": 8, "status": "cancel_only"},
        "XBTCHF": {"altname": "XBTCHF", "wsname": "XBT/CHF", "pair_decimals": 5, "lot_decimals": 8, "tick_size": "0.1"},
        "OLD.d": {"altname": "OLD.d", "pair_decimals": 1, "lot_decimals": 8}}}).encode()
    found = venue.instruments([body])
    assert [(one.symbol, one.canonical, one.tick, one.lot, one.listed) for one in found] == [
        ("BTC/USD", "BTC-USD", "0.1", "0.00000001", True), ("DOGE/USD", "DOGE-USD", "0.0000001", "0.00000001", False),
        ("BTC/CHF", "BTC-CHF", "0.10000", "0.00000001", True)]
    assert venue.instrument_requests()[0].path == "/0/public/AssetPairs"
    with pytest.raises(VenueError, match="EGeneral:Too many requests"):
        venue.instruments([b'{"error":["EGeneral:Too many requests"]}'])


def test_the_instrument_channel_lists_instruments_too(venue):
    body = (b'{"channel":"instrument","type":"snapshot","data":{"assets":[],"pairs":[{"symbol":"EUR/USD","price_precision":5,'
            b'"qty_precision":8,"price_increment":0.00001,"qty_increment":0.00000001,"status":"online"}]}}')
    one, = venue.instruments([body])
    assert (one.symbol, one.canonical, one.tick, one.lot) == ("EUR/USD", "EUR-USD", "0.00001", "0.00000001")
