# cython: language_level=3
"""Binance COIN-M futures: wss://dstream.binance.com, JSON.

Sources: developers.binance.com/docs/derivatives/coin-margined-futures (websocket-market-streams, REST market data),
read 2026-06-27 and 2026-07-26: the second reading found no COIN-M numbers of its own for streams and messages, so
those of USD-M are assumed.

Sizes are contracts (contractSize units of quote currency each: inverse). A delivery contract has no funding.
Book: changes chain by pu = last u alone. Messages, times and rules shared with the others: `_binance.pyx`.
"""
from libc.stdint cimport uint32_t, uint64_t
from feedhandler._cext cimport *
from feedhandler.venue cimport Venue
from feedhandler.venues._binance cimport BINANCE_COINM, binance_chain_futures, binance_decode, binance_decode_snapshot

from feedhandler.venue import RestRequest
from feedhandler.venues._binance import (
    binance_control, binance_futures_instruments, binance_futures_stream, binance_messages, binance_profile,
    binance_snapshot_request)

SNAPSHOT_WEIGHTS = {50: 2, 100: 5, 500: 10, 1000: 20}  # limit -> weight, of 2,400 a minute and address

PROFILES = {"coinm": binance_profile(
    "coinm", "wss://dstream.binance.com/stream", confidence="assumed", sources=["developers.binance.com: COIN-M market streams, 2026-06-27 and 2026-07-26", "probes of 2026-09"],
    notes=["1,024 streams and 10 messages/s are quoted in the USD-M style; the COIN-M pages have no such numbers"],
    client_msg={"windows": [{"n": 10, "per_s": 1, "scope": "conn"}], "counts_control_frames": True,
                "window_kind": "rolling_strict", "pace_ms": 300, "over": "close 1008; IP ban"},
    sub={"soft_per_conn": 200},
    overload={"policy": "disconnect"},
    book={"snapshot": "rest", "seq": {"first": "U", "last": "u", "prev": "pu", "rule": "prev_eq_last"},
          "checksum": "none", "resync": "rest_snapshot", "rest_snapshot": "/dapi/v1/depth?limit=1000", "rest_weight": 20},
    rest={"instruments": "GET /dapi/v1/exchangeInfo", "weight": 1, "budget": "2400 weight/min/IP"})}


cdef class BinanceCoinm(Venue):
    name = "binance-coinm"
    profiles = PROFILES
    urls = {endpoint: profile["url"]["primary"] for endpoint, profile in PROFILES.items()}
    rest_url = "https://dapi.binance.com"
    resync = "rest"
    price_digits_min = {"perpetual": 8, "future": 8}  # markPriceUpdate: p and i, "11794.15000000" (mark price stream, as above)

    cdef int decode(self, const char *payload, size_t size, uint64_t ts_recv_ns, fh_batch *batch) noexcept nogil:
        return binance_decode(self.symbols, self.rows, BINANCE_COINM, payload, size, batch)

    cdef int decode_snapshot(self, const char *body, size_t size, uint32_t instrument, uint64_t ts_recv_ns,
                             fh_batch *batch) noexcept nogil:
        return binance_decode_snapshot(self.rows, instrument, body, size, batch)

    cdef int chain(self, fh_chain *chain, const fh_event *event) noexcept nogil:
        return binance_chain_futures(chain, event)

    def stream(self, symbol, channel):
        return binance_futures_stream(self.name, symbol, channel, "coinm", "coinm")

    def subscribe(self, endpoint, streams, request_id):
        return binance_messages("SUBSCRIBE", streams, request_id)

    def unsubscribe(self, endpoint, streams, request_id):
        return binance_messages("UNSUBSCRIBE", streams, request_id)

    def control(self, payload):
        return binance_control(payload)

    def snapshot_request(self, symbol, depth):
        return binance_snapshot_request("/dapi/v1/depth", symbol, depth, SNAPSHOT_WEIGHTS)

    def instrument_requests(self):
        return [RestRequest("/dapi/v1/exchangeInfo", 1)]

    def instruments(self, bodies):
        return binance_futures_instruments(self.name, bodies, True)


VENUE = BinanceCoinm
