# cython: language_level=3
"""Binance spot: wss://stream.binance.com, JSON.

Sources: github.com/binance/binance-spot-api-docs (web-socket-streams.md, rest-api.md, CHANGELOG.md), read at
a5e0bc3, 2026-07-21; pacing of 300 ms: github.com/nautechsystems/nautilus_trader issue 5012 (2026-09) and
github.com/QuantConnect/Lean issue 5583 (2021).

Book: changes chain by U = last u + 1 behind a REST snapshot; depth 5, 10 and 20 are whole windows.
Messages, times and rules shared with the futures: `_binance.pyx`. Only the wrapped /stream is used: on a raw /ws
a partial depth has no symbol.
"""
from libc.stdint cimport uint32_t, uint64_t
from feedhandler._cext cimport *
from feedhandler.venue cimport Venue
from feedhandler.venues._binance cimport BINANCE_SPOT, binance_chain_spot, binance_decode, binance_decode_snapshot

from feedhandler.venue import RestRequest, Stream, VenueError
from feedhandler.venues._binance import (
    FIRST_DATA_S, INTERVALS, binance_book, binance_choice, binance_control, binance_messages, binance_name,
    binance_plain, binance_profile, binance_snapshot_request, binance_spot_instruments)

SPEEDS = {"100ms": "@100ms", "1000ms": ""}
SNAPSHOT_WEIGHTS = {100: 5, 500: 25, 1000: 50, 5000: 250}  # limit -> weight, of 6,000 a minute and address
SUFFIXES = {"trade": "@trade", "agg_trade": "@aggTrade", "quote": "@bookTicker", "ticker": "@ticker"}
ABSENT = {
    "mark": "a mark price exists on futures only: use binance-usdm or binance-coinm",
    "index": "an index price exists on futures only: use binance-usdm or binance-coinm",
    "funding": "funding exists on futures only: use binance-usdm or binance-coinm",
    "open_interest": "open interest exists on futures only, and there over REST only",
    "liquidation": "liquidations exist on futures only: use binance-usdm or binance-coinm",
    "greeks": "the venue lists no options on this endpoint",
    "instrument": "there is no instrument stream; the list is read again from exchangeInfo",
}

PROFILES = {"spot.json": binance_profile(
    "spot.json", "wss://stream.binance.com:9443/stream", confidence="official", sources=["github.com/binance/binance-spot-api-docs at a5e0bc3, 2026-07-21"],
    conn={"attempts": [{"n": 300, "per_s": 300, "scope": "ip"}]},
    client_msg={"windows": [{"n": 5, "per_s": 1, "scope": "conn"}], "counts_control_frames": True,
                "window_kind": "rolling_strict", "pace_ms": 300,
                "over": "close 1008 Too many requests; repeat offenders IP ban"},
    liveness={"server_ping": "frame", "server_ping_s": 20, "pong_deadline_s": 60, "pong_echo_payload": True,
              "client_ping": None},
    overload={"policy": "disconnect", "close_codes": {"1008": "Too many requests / Pong timeout"}},
    book={"snapshot": "rest", "seq": {"first": "U", "last": "u", "rule": "first_eq_last_plus_1"}, "checksum": "none",
          "resync": "rest_snapshot", "rest_snapshot": "/api/v3/depth?limit=5000", "rest_weight": 250},
    time={"unit": "ms", "send_field": "E"},
    rest={"instruments": "GET /api/v3/exchangeInfo", "weight": 20, "budget": "6000 weight/min/IP"})}


cdef class BinanceSpot(Venue):
    name = "binance-spot"
    profiles = PROFILES
    urls = {endpoint: profile["url"]["primary"] for endpoint, profile in PROFILES.items()}
    rest_url = "https://api.binance.com"
    resync = "rest"

    cdef int decode(self, const char *payload, size_t size, uint64_t ts_recv_ns, fh_batch *batch) noexcept nogil:
        return binance_decode(self.symbols, self.rows, BINANCE_SPOT, payload, size, batch)

    cdef int decode_snapshot(self, const char *body, size_t size, uint32_t instrument, uint64_t ts_recv_ns,
                             fh_batch *batch) noexcept nogil:
        return binance_decode_snapshot(self.rows, instrument, body, size, batch)

    cdef int chain(self, fh_chain *chain, const fh_event *event) noexcept nogil:
        return binance_chain_spot(chain, event)

    def stream(self, symbol, channel):
        name = channel.name
        if name in ABSENT:
            raise VenueError(f"{self.name}: {name}: {ABSENT[name]}")
        if name == "book":
            return binance_book(self.name, "spot.json", symbol, channel, SPEEDS, SPEEDS)
        if name == "candle":
            if channel.depth:
                raise VenueError(f"{self.name}: candle has no depth; ask for 'candle@1m'")
            interval = binance_choice(self.name, channel, "interval", channel.speed, INTERVALS + ("1s",))
            suffix = f"@kline_{interval}"
        else:
            binance_plain(self.name, channel)
            suffix = SUFFIXES[name]
        wire = binance_name(self.name, symbol, suffix)
        return Stream("spot.json", wire, symbol, name, first_data_s=FIRST_DATA_S[name])

    def subscribe(self, endpoint, streams, request_id):
        return binance_messages("SUBSCRIBE", streams, request_id)

    def unsubscribe(self, endpoint, streams, request_id):
        return binance_messages("UNSUBSCRIBE", streams, request_id)

    def control(self, payload):
        return binance_control(payload)

    def snapshot_request(self, symbol, depth):
        return binance_snapshot_request("/api/v3/depth", symbol, depth, SNAPSHOT_WEIGHTS)

    def instrument_requests(self):
        return [RestRequest("/api/v3/exchangeInfo", 20)]

    def instruments(self, bodies):
        return binance_spot_instruments(self.name, bodies)


VENUE = BinanceSpot
