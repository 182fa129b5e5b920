# cython: language_level=3
"""Binance USD-M futures: wss://fstream.binance.com, JSON.

Sources: developers.binance.com/docs/derivatives/usds-margined-futures (websocket-market-streams, REST market data,
Important-WebSocket-Change-Notice), read 2026-06-27; @trade on /public, the silent wrong route and @depth@0ms:
measured by third parties, 2026-07 to 2026-09. 5 messages a second enforced on the testnet:
github.com/nautechsystems/nautilus_trader issue 5012 (2026-09), hence the pace of 300 ms.

Since 2026-04-23 a stream is served on one of two routes, and a SUBSCRIBE on the wrong one is acknowledged and then
silent: stream() names the route, and nothing else may choose one.

Book: changes chain by pu = last u alone. Messages, times and rules shared with spot and COIN-M: `_binance.pyx`.
"""
from libc.stdint cimport uint32_t, uint64_t
from feedhandler._cext cimport *
from feedhandler.venue cimport Venue
from feedhandler.venues._binance cimport BINANCE_USDM, binance_chain_futures, binance_decode, binance_decode_snapshot

from feedhandler.venue import RestRequest
from feedhandler.venues._binance import (
    binance_control, binance_futures_instruments, binance_futures_stream, binance_messages, binance_profile,
    binance_snapshot_request)

SNAPSHOT_WEIGHTS = {50: 2, 100: 5, 500: 10, 1000: 20}  # limit -> weight, of 2,400 a minute and address
SOURCES = ["developers.binance.com: USD-M market streams and change notice, 2026-06-27", "routes measured 2026-07-30, probes of 2026-09"]
CLIENT_MSG = {"windows": [{"n": 10, "per_s": 1, "scope": "conn"}], "counts_control_frames": True,
              "window_kind": "rolling_strict", "pace_ms": 300, "over": "close 1008; IP ban"}
# 1,024 streams are documented now, 200 were before and are what others still keep to: plan for 200.
SUB = {"max_per_conn": 1024, "soft_per_conn": 200, "in_url": True, "ack": "per_request", "ack_means_data": False}
REST = {"instruments": "GET /fapi/v1/exchangeInfo", "weight": 1, "budget": "2400 weight/min/IP"}
PUBLIC_ONLY = ("*@depth*", "*@bookTicker", "!bookTicker", "*@trade", "*@rpiDepth*")
MARKET_ONLY = ("*@aggTrade", "*@kline_*", "*@continuousKline_*", "*@markPrice*", "*@ticker", "*@miniTicker",
               "*@forceOrder", "!markPrice@arr*", "!miniTicker@arr", "!ticker@arr", "!forceOrder@arr", "!contractInfo",
               "!assetIndex@arr", "*@compositeIndex")


def _routing(delivered, elsewhere):
    return ([{"channel_glob": glob, "delivered": True} for glob in delivered]
            + [{"channel_glob": glob, "delivered": False} for glob in elsewhere])


PROFILES = {
    "usdm.public": binance_profile(
        "usdm.public", "wss://fstream.binance.com/public/stream", confidence="official+measured", sources=SOURCES,
        notes=["@trade is not in the official list; measured on this route by a third party",
               "connect-attempt cap not published", "unrouted /ws and /stream behave as this route since 2026-04-23"],
        routing=_routing(PUBLIC_ONLY, MARKET_ONLY), client_msg=CLIENT_MSG, sub=SUB,
        overload={"policy": "disconnect"},
        book={"snapshot": "rest", "seq": {"first": "U", "last": "u", "prev": "pu", "rule": "prev_eq_last"},
              "checksum": "none", "resync": "rest_snapshot", "rest_snapshot": "/fapi/v1/depth?limit=1000",
              "rest_weight": 20},
        rest=REST),
    "usdm.market": binance_profile(
        "usdm.market", "wss://fstream.binance.com/market/stream", confidence="official+measured", sources=SOURCES,
        notes=["no book channel on this route"], routing=_routing(MARKET_ONLY, PUBLIC_ONLY),
        client_msg=CLIENT_MSG, sub=SUB, overload={"policy": "disconnect"}, book={},
        rest=REST),
}


cdef class BinanceUsdm(Venue):
    name = "binance-usdm"
    profiles = PROFILES
    urls = {endpoint: profile["url"]["primary"] for endpoint, profile in PROFILES.items()}
    rest_url = "https://fapi.binance.com"
    resync = "rest"
    price_digits_min = {"perpetual": 8, "future": 8}  # markPriceUpdate: p and i, "11794.15000000" (mark price stream, as above)

    cdef int decode(self, const char *payload, size_t size, uint64_t ts_recv_ns, fh_batch *batch) noexcept nogil:
        return binance_decode(self.symbols, self.rows, BINANCE_USDM, payload, size, batch)

    cdef int decode_snapshot(self, const char *body, size_t size, uint32_t instrument, uint64_t ts_recv_ns,
                             fh_batch *batch) noexcept nogil:
        return binance_decode_snapshot(self.rows, instrument, body, size, batch)

    cdef int chain(self, fh_chain *chain, const fh_event *event) noexcept nogil:
        return binance_chain_futures(chain, event)

    def stream(self, symbol, channel):
        return binance_futures_stream(self.name, symbol, channel, "usdm.public", "usdm.market")

    def subscribe(self, endpoint, streams, request_id):
        return binance_messages("SUBSCRIBE", streams, request_id)

    def unsubscribe(self, endpoint, streams, request_id):
        return binance_messages("UNSUBSCRIBE", streams, request_id)

    def control(self, payload):
        return binance_control(payload)

    def snapshot_request(self, symbol, depth):
        return binance_snapshot_request("/fapi/v1/depth", symbol, depth, SNAPSHOT_WEIGHTS)

    def instrument_requests(self):
        return [RestRequest("/fapi/v1/exchangeInfo", 1)]

    def instruments(self, bodies):
        return binance_futures_instruments(self.name, bodies, False)


VENUE = BinanceUsdm
