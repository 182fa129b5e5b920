# cython: language_level=3
"""OKX v5, public market data as JSON text.

Sources: www.okx.com/docs-v5/en (WebSocket overview, order-book market data, public data, error codes), copy of
2026-06-15 to 2026-06-27, and the notice on the end of the checksum field of 2026-06-23; recorded frames of 2022.

Channels
    trade        `trades`: fills of one taker order at one price, merged; `count` says how many (0: not told).
                 aggregate is 1. agg_trade is the same stream.
    trade@all    `trades-all` (business): one record a fill; aggregate 0, count 1.
    quote        `bbo-tbt`, 10 ms on change.
    book         `books`: 400 levels, snapshot and changes, 100 ms.  book5: `books5`, whole windows, 100 ms.
    ticker mark index funding open_interest candle@1m greeks liquidation instrument: as STREAMS below says.

Event time is `ts`: matching engine on bbo-tbt, fill on trades, book generation on books and books5, venue's
computation on tickers, mark, index, funding, open interest and greeks, start of the candle on candles. The
hosts behind these clocks differ: nothing here compares two of them.

Units: sizes are base coins on spot and contracts on derivatives (multiplier = ctVal * ctMult). 24-hour sums
(volume, open interest in USD) are rounded to the instrument's exponents and flagged INEXACT; they never raise an
exponent. Funding rates have up to 16 digits and are rounded to 12, flagged INEXACT. Greeks are the
Black-Scholes ones in USD, volatilities are fractions (0.5 is 50 %), NaN where the venue sent nothing.

Continuity: a snapshot has prevSeqId -1; a change's prevSeqId is the last seqId. seqId equal to prevSeqId is a
keepalive, seqId below it a reset by maintenance: both are in line. Without ids (before 2023) the checksum is
the only chain. A checksum of 0 means none (always so since 2026-06-23). A crossed book is legal in pre-open.
"""
import decimal
import json
import re
import time

cimport cython
from libc.math cimport NAN
from libc.string cimport memcmp, memcpy, memset
from feedhandler._cext cimport *
from feedhandler.venue cimport Venue, bids_first, no_statistic, price_or_none, rounded, statistic
from feedhandler.venue import Ack, Alive, Closing, Complaint, Instrument, RestRequest, Stream, VenueError

REQUEST_SIZE_MAX = 65_536  # bytes of one request: "the total length of multiple channels cannot exceed 64 KB"
FIRST_DATA_S = 5.0         # seen: p90 685 ms from subscribe to first push
BOOK_DEPTH = 400

_CONN = {"max_open": None, "max_open_scope": None, "counts_http": False, "attempts": [{"n": 3, "per_s": 1, "scope": "ip"}],
         "reject": "HTTP 429", "ban_s": None, "first_sub_deadline_s": 30, "settle_delay_s": 0}
_CLIENT_MSG = {"windows": [{"n": 480, "per_s": 3600, "scope": "conn"}], "window_kind": "unknown", "counts_control_frames": False,
               "counts_ops": "sub_unsub_login", "pace_ms": 0, "credits": None, "over": "60014"}
_SUB = {"max_per_conn": None, "soft_per_conn": None, "max_per_ip": None, "max_dup_per_product_channel": None, "max_args_per_msg": None,
        "max_args_chars_per_conn": None, "max_msg_bytes": REQUEST_SIZE_MAX, "weight_by_channel": {}, "soft_by_channel": {}, "exclusive": [],
        "in_url": False, "ack": "per_topic", "ack_means_data": True, "dup_sub": "unknown"}
_LIVENESS = {"server_ping": "none", "client_ping": "ping", "client_ping_s": 20, "idle_close_s": 30, "app_reply": "pong"}
_LIFETIME = {"max_s": None, "shutdown_notice": "\"code\":\"64008\"", "notice_lead_s": 60}
_OVERLOAD = {
    "policy": "disconnect",
    "close_codes": {"1009": "request too long", "4004": "no data for 30 s", "4005": "buffer is full: we read too slowly",
                    "4008": "too many channels in total", "4009": "too many channels on this connection"},
    "error_codes": {"60012": "bad request", "60014": "too frequent", "60018": "no such channel",
                    "64003": "fee tier too low", "64004": "books channels that exclude each other"},
}
_SOURCES = ["www.okx.com/docs-v5/en, copy of 2026-06-15 to 2026-06-27"]
_REST = {"instruments": "GET /api/v5/public/instruments", "weight": 1, "budget": "20 requests per 2 s per IP and instType"}

PROFILES = {
    "public": {
        "venue": "okx", "endpoint": "public", "as_of": "2026-07-31", "confidence": "official", "sources": _SOURCES,
        "notes": ["third parties report VIP5 for books-l2-tbt since 2026; the page of 2026-06-15 says VIP4"],
        "url": {"primary": "wss://ws.okx.com:8443/ws/v5/public"},
        "auth": {"required": False, "kind": "login_msg", "tier_gate": {"books-l2-tbt": "VIP4", "books50-l2-tbt": "VIP4"}},
        "routing": [{"channel_glob": "trades-all", "delivered": False}, {"channel_glob": "candle*", "delivered": False},
                    {"channel_glob": "*", "delivered": True}],
        "conn": _CONN,
        "client_msg": _CLIENT_MSG,
        "sub": {**_SUB, "soft_by_channel": {"books*": 30}, "exclusive": [["books-l2-tbt", "books50-l2-tbt"], ["books-l2-tbt", "books"]]},
        "liveness": _LIVENESS, "lifetime": _LIFETIME,
        "wire": {"opcode": "text", "codec": "json", "payload_compression": "none", "permessage_deflate": "offered",
                 "max_frame_bytes_seen": 25_390},
        "overload": _OVERLOAD,
        "rate_model": {"books": {"bytes_med": 610, "bytes_p99": 2_581, "bytes_max": 25_390, "min_interval_ms": 100},
                       "trades": {"bytes_med": 168, "bytes_p99": 169, "bytes_max": 169},
                       "bbo-tbt": {"bytes_med": 170, "min_interval_ms": 10}},
        "book": {"snapshot": "in_band", "resync": "resubscribe", "checksum": "okx_legacy_crc32_top25_signed",
                 "seq": {"last": "seqId", "prev": "prevSeqId", "rule": "prev_eq_last",
                         "reset": "seqId<prevSeqId accept; seqId==prevSeqId empty keepalive"}},
        "time": {"unit": "ms", "send_field": "ts"},
        "rest": _REST,
    },
    "business": {
        "venue": "okx", "endpoint": "business", "as_of": "2026-07-31", "confidence": "official", "sources": _SOURCES,
        "url": {"primary": "wss://ws.okx.com:8443/ws/v5/business"},
        "routing": [{"channel_glob": "trades-all", "delivered": True}, {"channel_glob": "candle*", "delivered": True},
                    {"channel_glob": "*", "delivered": False}],
        "conn": _CONN,
        "client_msg": _CLIENT_MSG,
        "sub": _SUB,
        "liveness": _LIVENESS, "lifetime": _LIFETIME,
        "wire": {"opcode": "text", "codec": "json", "payload_compression": "none", "permessage_deflate": "offered"},
        "overload": _OVERLOAD,
        "rate_model": {"trades-all": {"bytes_med": 160}, "candle*": {"bytes_med": 220}},
        "book": {},
        "time": {"unit": "ms", "send_field": "ts"},
        "rest": _REST,
    },
}

# Channels of one instrument: user's name -> (endpoint, OKX channel, first data within s; 0: silence is normal).
STREAMS = {
    "trade": ("public", "trades", 0.0),
    "agg_trade": ("public", "trades", 0.0),
    "quote": ("public", "bbo-tbt", FIRST_DATA_S),
    "ticker": ("public", "tickers", FIRST_DATA_S),
    "mark": ("public", "mark-price", FIRST_DATA_S),
    "index": ("public", "index-tickers", FIRST_DATA_S),
    "funding": ("public", "funding-rate", FIRST_DATA_S),
    "open_interest": ("public", "open-interest", FIRST_DATA_S),
}
NOT_ON_SPOT = ("mark", "funding", "open_interest", "liquidation")
CANDLES = {text.lower(): text for text in "1s 1m 3m 5m 15m 30m 1H 2H 4H 6H 12H 1D 2D 3D 1W".split()}
"""Interval as the user writes it (1h) -> as OKX writes it (1H)."""

# One subscription argument as canonical JSON text: these keys in this order, then any others by name.
_ARG_KEYS = ("channel", "instType", "instFamily", "uly", "instId")
_NAME = re.compile(r"(?=.{1,48}$)\w+(-[\w.]+)+", re.ASCII)
_NO_SUCH = re.compile(r"channel:([\w-]+),\s*inst(Id|Family|Type):([\w-]+)")


def wire(arg):
    """Canonical text of a subscription argument (a dict): what Stream.wire and Ack.wire hold."""
    keys = [key for key in _ARG_KEYS if arg.get(key)] + sorted(key for key in arg if key not in _ARG_KEYS)
    return json.dumps({key: arg[key] for key in keys}, separators=(",", ":"))


# Channels that carry data, as arg.channel names them.
cdef enum:
    CHANNEL_UNKNOWN, CHANNEL_TRADES, CHANNEL_TRADES_ALL, CHANNEL_BBO, CHANNEL_BOOKS, CHANNEL_WINDOW, CHANNEL_TICKERS
    CHANNEL_MARK, CHANNEL_INDEX, CHANNEL_FUNDING, CHANNEL_OPEN_INTEREST, CHANNEL_LIQUIDATION, CHANNEL_CANDLE
    CHANNEL_SUMMARY, CHANNEL_INSTRUMENTS

cdef enum:
    OLD_RUN_MAX = 640 # old changes in a row before a missed sequence reset is suspected: a minute at 100 ms. A line that is behind sends as many
                      # when the other is lost, or when its instrument was taken over

cdef enum:
    ACTION_NONE, ACTION_SNAPSHOT, ACTION_UPDATE, ACTION_UNKNOWN

cdef struct Arg:
    int channel
    int action
    fh_text symbol      # size 0: the argument names no instrument
    uint32_t interval_s # of a candle


cdef int channel_of(const fh_text *text) noexcept nogil:
    if fh_key_is(text, b"trades"): return CHANNEL_TRADES
    if fh_key_is(text, b"books"): return CHANNEL_BOOKS
    if fh_key_is(text, b"bbo-tbt"): return CHANNEL_BBO
    if fh_key_is(text, b"tickers"): return CHANNEL_TICKERS
    if fh_key_is(text, b"books5"): return CHANNEL_WINDOW
    if fh_key_is(text, b"trades-all"): return CHANNEL_TRADES_ALL
    if fh_key_is(text, b"books-l2-tbt") or fh_key_is(text, b"books50-l2-tbt"): return CHANNEL_BOOKS
    if fh_key_is(text, b"mark-price"): return CHANNEL_MARK
    if fh_key_is(text, b"index-tickers"): return CHANNEL_INDEX
    if fh_key_is(text, b"funding-rate"): return CHANNEL_FUNDING
    if fh_key_is(text, b"open-interest"): return CHANNEL_OPEN_INTEREST
    if fh_key_is(text, b"liquidation-orders"): return CHANNEL_LIQUIDATION
    if fh_key_is(text, b"opt-summary"): return CHANNEL_SUMMARY
    if fh_key_is(text, b"instruments"): return CHANNEL_INSTRUMENTS
    if interval_of(text) != 0: return CHANNEL_CANDLE
    return CHANNEL_UNKNOWN


cdef uint32_t interval_of(const fh_text *text) noexcept nogil:
    """Seconds of "candle1m", "candle6Hutc" …; a month counts 30 days; 0: not a candle channel."""
    cdef size_t at = 6
    cdef uint32_t count = 0
    if text.escaped or text.size < 8 or memcmp(text.at, b"candle", 6) != 0:
        return 0
    while at < text.size and c'0' <= text.at[at] <= c'9' and count < 100:
        count = count * 10 + <uint32_t>(text.at[at] - c'0')
        at += 1
    if at + 1 != text.size and not (at + 4 == text.size and memcmp(text.at + at + 1, b"utc", 3) == 0):
        return 0
    cdef char unit = text.at[at]
    if unit == c's': return count
    if unit == c'm': return count * 60
    if unit == c'H': return count * 3_600
    if unit == c'D': return count * 86_400
    if unit == c'W': return count * 604_800
    if unit == c'M': return count * 2_592_000
    return 0


cdef void parse_arg(fh_json *json, Arg *arg) noexcept nogil:
    """The object that names the stream. An absent field stays as it is."""
    cdef fh_key key
    cdef fh_text text
    fh_json_object(json)
    while fh_json_key(json, &key):
        if fh_key_is(&key, b"channel"):
            if fh_json_string(json, &text):
                arg.channel = channel_of(&text)
                if arg.channel == CHANNEL_CANDLE:
                    arg.interval_s = interval_of(&text)
        elif fh_key_is(&key, b"instId"):
            fh_json_string(json, &arg.symbol)
        else:
            fh_json_skip(json)


cdef void parse_action(fh_json *json, Arg *arg) noexcept nogil:
    cdef fh_text text
    arg.action = ACTION_UNKNOWN
    if fh_json_string(json, &text):
        if fh_key_is(&text, b"update"):
            arg.action = ACTION_UPDATE
        elif fh_key_is(&text, b"snapshot"):
            arg.action = ACTION_SNAPSHOT


cdef inline void number(fh_json *json, fh_decimal *value) noexcept nogil:
    """A number that may be absent: digits stays -1 then."""
    if not fh_json_absent(json):
        fh_json_decimal(json, value)


cdef inline void real(fh_json *json, double *value) noexcept nogil:
    if not fh_json_absent(json):
        fh_json_double(json, value)


cdef inline void time_ms(fh_json *json, uint64_t *ns) noexcept nogil:
    if not fh_json_absent(json):
        fh_json_time_ms(json, ns)


cdef inline int side_of(fh_json *json, uint8_t *side) noexcept nogil:
    cdef fh_text text
    if not fh_json_string(json, &text):
        return json.error
    if fh_key_is(&text, b"buy"):
        side[0] = FH_BID
    elif fh_key_is(&text, b"sell"):
        side[0] = FH_ASK
    else:
        return FH_ERROR_UNKNOWN
    return FH_OK


cdef int best_level(fh_json *json, fh_decimal *price, fh_decimal *size) noexcept nogil:
    """Price and size of the first level of a side; an empty side leaves both absent."""
    cdef int index = 0
    if not fh_json_array(json):
        return json.error
    while fh_json_element(json):
        if index > 0:
            fh_json_skip(json)
            continue
        fh_json_array(json)
        while fh_json_element(json):
            if index == 0: fh_json_decimal(json, price)
            elif index == 1: fh_json_decimal(json, size)
            else: fh_json_skip(json)
            index += 1
        if json.error == FH_OK and index < 2:
            return FH_ERROR_MISSING
    return json.error


@cython.final
cdef class Okx(Venue):
    name = "okx"
    profiles = PROFILES
    urls = {endpoint: profile["url"]["primary"] for endpoint, profile in PROFILES.items()}
    rest_url = "https://www.okx.com"
    resync = "resubscribe"
    # markPx and idxPx are finer than the tick (docs-v5: mark price channel, index tickers channel); an index is published on the spot
    # instrument of its name.
    price_digits_min = {"spot": 8, "perpetual": 8, "future": 8, "option": 8}

    # -- data plane ------------------------------------------------------------------------------------------

    cdef int decode(self, const char *payload, size_t size, uint64_t ts_recv_ns,
                    fh_batch *batch) noexcept nogil:
        cdef uint32_t ignored = batch.ignored, unlisted = batch.unlisted, before = batch.event_count
        cdef int result
        if size == 4 and memcmp(payload, b"pong", 4) == 0:  # not JSON
            batch.control = 1
            return 0
        fh_batch_mark(batch)
        result = self.frame(payload, size, batch)
        if result < 0:
            fh_batch_rollback(batch)
            batch.ignored = ignored
            batch.unlisted = unlisted
            return result
        return <int>(batch.event_count - before)

    cdef int frame(self, const char *payload, size_t size, fh_batch *batch) noexcept nogil:
        """The envelope, keys in any order. data is decoded where it stands if all it needs came before it."""
        cdef fh_json json
        cdef fh_key key
        cdef fh_text held
        cdef Arg arg
        cdef bint has_data = False, is_event = False
        cdef int result
        arg.channel = CHANNEL_UNKNOWN
        arg.action = ACTION_NONE
        arg.symbol.size = 0
        held.size = 0
        fh_json_open(&json, payload, size)
        fh_json_object(&json)
        while fh_json_key(&json, &key):
            if fh_key_is(&key, b"data") and not has_data and not is_event:
                has_data = True
                if arg.channel == CHANNEL_UNKNOWN or (arg.channel == CHANNEL_BOOKS and arg.action == ACTION_NONE):
                    fh_json_raw(&json, &held)
                else:
                    result = self.rows_of(&json, &arg, batch)
                    if result < 0:
                        return result
            elif fh_key_is(&key, b"arg"): parse_arg(&json, &arg)
            elif fh_key_is(&key, b"action"): parse_action(&json, &arg)
            else:
                is_event |= fh_key_is(&key, b"event") or fh_key_is(&key, b"code")
                fh_json_skip(&json)
        result = fh_json_close(&json)
        if result < 0:
            return result
        if is_event:
            fh_batch_rollback(batch)
            batch.control = 1
            return FH_OK
        if not has_data or arg.channel == CHANNEL_UNKNOWN:
            return FH_ERROR_UNKNOWN
        if held.size == 0:
            return FH_OK
        fh_json_open(&json, held.at, held.size)
        result = self.rows_of(&json, &arg, batch)
        return result if result < 0 else fh_json_close(&json)

    cdef int rows_of(self, fh_json *json, Arg *arg, fh_batch *batch) noexcept nogil:
        """The array `data`: one or more rows of the argument's channel."""
        cdef int result
        if not fh_json_array(json):
            return json.error
        while fh_json_element(json):
            if arg.channel == CHANNEL_TRADES or arg.channel == CHANNEL_TRADES_ALL: result = self.trade(json, arg, batch)
            elif arg.channel == CHANNEL_BOOKS or arg.channel == CHANNEL_WINDOW: result = self.book(json, arg, batch)
            elif arg.channel == CHANNEL_BBO: result = self.quote(json, arg, batch)
            elif arg.channel == CHANNEL_TICKERS: result = self.ticker(json, arg, batch)
            elif arg.channel == CHANNEL_MARK or arg.channel == CHANNEL_INDEX: result = self.mark(json, arg, batch)
            elif arg.channel == CHANNEL_FUNDING: result = self.funding(json, arg, batch)
            elif arg.channel == CHANNEL_OPEN_INTEREST: result = self.open_interest(json, arg, batch)
            elif arg.channel == CHANNEL_LIQUIDATION: result = self.liquidations(json, arg, batch)
            elif arg.channel == CHANNEL_CANDLE: result = self.candle(json, arg, batch)
            elif arg.channel == CHANNEL_SUMMARY: result = self.greeks(json, arg, batch)
            else:  # instruments: a change of the list, which the supervisor reads over REST
                batch.ignored += 1
                result = FH_OK if fh_json_skip(json) else json.error
            if result < 0:
                return json.error if json.error < 0 else result
        return json.error

    cdef const fh_instrument *listed(self, const fh_text *symbol, fh_batch *batch) noexcept nogil:
        """Row of a symbol, or NULL: counted as unlisted."""
        cdef uint32_t id = FH_INSTRUMENT_NONE
        if not symbol.escaped:
            id = fh_symbols_get(self.symbols, symbol.at, symbol.size)
        if id == FH_INSTRUMENT_NONE:
            batch.unlisted += 1
            batch.unlisted_symbol = symbol[0]
            return NULL
        return &self.rows[id]

    cdef int trade(self, fh_json *json, Arg *arg, fh_batch *batch) noexcept nogil:
        cdef fh_key key
        cdef fh_text symbol = arg.symbol
        cdef fh_decimal price, size
        cdef uint64_t trade_id = 0, count = 0, ts_ns = 0
        cdef uint8_t side = FH_SIDE_NONE
        cdef uint32_t seen = 0
        cdef int result
        fh_json_object(json)
        while fh_json_key(json, &key):
            if fh_key_is(&key, b"instId"): fh_json_string(json, &symbol)
            elif fh_key_is(&key, b"tradeId"): seen |= <uint32_t>fh_json_uint(json, &trade_id) << 2
            elif fh_key_is(&key, b"px"): seen |= fh_json_decimal(json, &price)
            elif fh_key_is(&key, b"sz"): seen |= <uint32_t>fh_json_decimal(json, &size) << 1
            elif fh_key_is(&key, b"side"):
                result = side_of(json, &side)
                if result < 0:
                    return result
                seen |= 16
            elif fh_key_is(&key, b"ts"): seen |= <uint32_t>fh_json_time_ms(json, &ts_ns) << 3
            elif fh_key_is(&key, b"count"): fh_json_uint(json, &count)
            else: fh_json_skip(json)
        if json.error < 0:
            return json.error
        if seen != 31 or symbol.size == 0:
            return FH_ERROR_MISSING
        if count >> 32:
            return FH_ERROR_RANGE
        cdef const fh_instrument *row = self.listed(&symbol, batch)
        if row == NULL:
            return FH_OK
        cdef fh_event *event = fh_batch_event(batch, FH_TRADE)
        if event == NULL:
            return FH_ERROR_FULL
        event.instrument = row.id
        event.channel = FH_CHANNEL_TRADE
        event.ts_event_ns = ts_ns
        event.sequence = trade_id
        event.body.word[2] = <int64_t>trade_id
        if arg.channel == CHANNEL_TRADES:
            event.body.word[3] = <int64_t>(side | 1 << 8 | count << 32)
        else:
            event.body.word[3] = <int64_t>(side | <uint64_t>1 << 32)
        result = fh_batch_price(batch, event, row, &price, &event.body.word[0])
        return fh_batch_size(batch, event, row, &size, &event.body.word[1]) if result == FH_OK else result

    cdef int quote(self, fh_json *json, Arg *arg, fh_batch *batch) noexcept nogil:
        """bbo-tbt. An empty side is a price FH_UNDEFINED and a size 0."""
        cdef fh_key key
        cdef fh_decimal price[2]
        cdef fh_decimal size[2]
        cdef uint64_t ts_ns = 0, sequence = 0
        cdef uint32_t seen = 0
        cdef int result, side
        price[0].digits = price[1].digits = -1
        fh_json_object(json)
        while fh_json_key(json, &key):
            if fh_key_is(&key, b"bids") or fh_key_is(&key, b"asks"):
                side = key.at[0] == c'a'
                result = best_level(json, &price[side], &size[side])
                if result < 0:
                    return result
                seen |= 1 << side
            elif fh_key_is(&key, b"ts"): seen |= <uint32_t>fh_json_time_ms(json, &ts_ns) << 2
            elif fh_key_is(&key, b"seqId"): fh_json_uint(json, &sequence)
            else: fh_json_skip(json)
        if json.error < 0:
            return json.error
        if seen != 7 or arg.symbol.size == 0:
            return FH_ERROR_MISSING
        cdef const fh_instrument *row = self.listed(&arg.symbol, batch)
        if row == NULL:
            return FH_OK
        cdef fh_event *event = fh_batch_event(batch, FH_QUOTE)
        if event == NULL:
            return FH_ERROR_FULL
        event.instrument = row.id
        event.channel = FH_CHANNEL_QUOTE
        event.ts_event_ns = ts_ns
        event.sequence = sequence
        for side in range(2):
            event.body.word[2 * side] = FH_UNDEFINED
            if price[side].digits < 0:
                continue
            result = fh_batch_price(batch, event, row, &price[side], &event.body.word[2 * side])
            if result == FH_OK:
                result = fh_batch_size(batch, event, row, &size[side], &event.body.word[2 * side + 1])
            if result < 0:
                return result
        return FH_OK

    cdef int book(self, fh_json *json, Arg *arg, fh_batch *batch) noexcept nogil:
        """One message of books (snapshot or changes) or books5 (a whole window)."""
        cdef fh_key key
        cdef fh_book_event book
        cdef uint64_t ts_ns = 0
        cdef int64_t sequence = -1, prev = -1, checksum = 0
        cdef uint32_t seen = 0, begin = batch.change_count, bids = begin
        cdef int result
        fh_json_object(json)
        while fh_json_key(json, &key):
            if fh_key_is(&key, b"asks"):
                if seen & 1: return FH_ERROR_MALFORMED
                result = fh_batch_levels(batch, json, FH_ASK, 0, 3)
                if result < 0:
                    return result
                seen |= 1
            elif fh_key_is(&key, b"bids"):
                if seen & 2: return FH_ERROR_MALFORMED
                bids = batch.change_count
                result = fh_batch_levels(batch, json, FH_BID, 0, 3)
                if result < 0:
                    return result
                seen |= 2
            elif fh_key_is(&key, b"ts"): seen |= <uint32_t>fh_json_time_ms(json, &ts_ns) << 2
            elif fh_key_is(&key, b"seqId"): seen |= <uint32_t>fh_json_int(json, &sequence) << 3
            elif fh_key_is(&key, b"prevSeqId"): seen |= <uint32_t>fh_json_int(json, &prev) << 4
            elif fh_key_is(&key, b"checksum"): fh_json_int(json, &checksum)
            else: fh_json_skip(json)
        if json.error < 0:
            return json.error
        bids_first(batch, begin, bids)
        memset(&book, 0, sizeof(book))
        book.change_begin = begin
        book.change_count = batch.change_count - begin
        result = chain_fields(&book, arg, seen, sequence, prev, checksum)
        if result < 0:
            return result
        return self.book_event(arg, ts_ns, &book, batch)

    cdef int book_event(self, Arg *arg, uint64_t ts_ns, const fh_book_event *book, fh_batch *batch) noexcept nogil:
        cdef const fh_instrument *row = self.listed(&arg.symbol, batch)
        if row == NULL:
            batch.change_count = book.change_begin
            return FH_OK
        cdef fh_event *event = fh_batch_event(batch, FH_LEVEL)
        if event == NULL:
            return FH_ERROR_FULL
        event.instrument = row.id
        event.channel = FH_CHANNEL_BOOK
        event.ts_event_ns = ts_ns
        event.sequence = book.last
        event.body.book = book[0]
        if book.window or arg.action == ACTION_SNAPSHOT:
            event.flags |= FH_SNAPSHOT
        return fh_batch_scale(batch, event, row)

    cdef int ticker(self, fh_json *json, Arg *arg, fh_batch *batch) noexcept nogil:
        """TICKER: last, open, high, low of 24 hours, volume; quote volume on spot only (elsewhere it is in coins)."""
        cdef fh_key key
        cdef fh_text symbol = arg.symbol, kind
        cdef fh_decimal value[6]  # last, open, high, low, volume, quote volume
        cdef uint64_t ts_ns = 0
        cdef uint32_t seen = 0
        cdef int index, result
        kind.size = 0
        for index in range(6):
            value[index].digits = -1
        fh_json_object(json)
        while fh_json_key(json, &key):
            if fh_key_is(&key, b"last"):
                number(json, &value[0])
                seen |= 1
            elif fh_key_is(&key, b"open24h"): number(json, &value[1])
            elif fh_key_is(&key, b"high24h"): number(json, &value[2])
            elif fh_key_is(&key, b"low24h"): number(json, &value[3])
            elif fh_key_is(&key, b"vol24h"): number(json, &value[4])
            elif fh_key_is(&key, b"volCcy24h"): number(json, &value[5])
            elif fh_key_is(&key, b"ts"): seen |= <uint32_t>fh_json_time_ms(json, &ts_ns) << 1
            elif fh_key_is(&key, b"instId"): fh_json_string(json, &symbol)
            elif fh_key_is(&key, b"instType"): fh_json_string(json, &kind)
            else: fh_json_skip(json)
        if json.error < 0:
            return json.error
        if seen != 3 or symbol.size == 0:
            return FH_ERROR_MISSING
        if not fh_key_is(&kind, b"SPOT"):
            value[5].digits = -1
        return self.candle_event(FH_TICKER, FH_CHANNEL_TICKER, &symbol, ts_ns, value, batch)

    cdef int candle_event(self, uint8_t kind, uint8_t channel, const fh_text *symbol, uint64_t ts_ns,
                          const fh_decimal *value, fh_batch *batch) noexcept nogil:
        """TICKER or CANDLE: four prices, a volume and a quote volume; the last two words are the caller's."""
        cdef const fh_instrument *row = self.listed(symbol, batch)
        if row == NULL:
            return FH_OK
        cdef fh_event *event = fh_batch_event(batch, kind)
        if event == NULL:
            return FH_ERROR_FULL
        cdef int index, result
        event.instrument = row.id
        event.channel = channel
        event.ts_event_ns = ts_ns
        event.slot_count = 2
        for index in range(4):
            result = price_or_none(batch, event, row, &value[index], &event.body.word[index])
            if result < 0:
                return result
        event.body.word[4] = rounded(event, &value[4], -row.size_exponent)
        statistic(event, 5, &value[5])
        if kind == FH_TICKER:
            no_statistic(event, 6)  # no weighted average
        return FH_OK

    cdef int mark(self, fh_json *json, Arg *arg, fh_batch *batch) noexcept nogil:
        """mark-price, or index-tickers: the index BTC-USDT is published on the instrument of that name."""
        cdef fh_key key
        cdef fh_text symbol = arg.symbol
        cdef fh_decimal price
        cdef uint64_t ts_ns = 0
        cdef uint32_t seen = 0
        cdef bint is_mark = arg.channel == CHANNEL_MARK
        fh_json_object(json)
        while fh_json_key(json, &key):
            if (is_mark and fh_key_is(&key, b"markPx")) or (not is_mark and fh_key_is(&key, b"idxPx")):
                seen |= fh_json_decimal(json, &price)
            elif fh_key_is(&key, b"ts"): seen |= <uint32_t>fh_json_time_ms(json, &ts_ns) << 1
            elif fh_key_is(&key, b"instId"): fh_json_string(json, &symbol)
            else: fh_json_skip(json)
        if json.error < 0:
            return json.error
        if seen != 3 or symbol.size == 0:
            return FH_ERROR_MISSING
        cdef const fh_instrument *row = self.listed(&symbol, batch)
        if row == NULL:
            return FH_OK
        cdef fh_event *event = fh_batch_event(batch, FH_MARK if is_mark else FH_INDEX)
        if event == NULL:
            return FH_ERROR_FULL
        event.instrument = row.id
        event.channel = FH_CHANNEL_MARK if is_mark else FH_CHANNEL_INDEX
        event.ts_event_ns = ts_ns
        return fh_batch_price(batch, event, row, &price, &event.body.word[0])

    cdef int funding(self, fh_json *json, Arg *arg, fh_batch *batch) noexcept nogil:
        """FUNDING: the rate settled at fundingTime, and the one after it where the venue tells it already."""
        cdef fh_key key
        cdef fh_text symbol = arg.symbol
        cdef fh_decimal rate, predicted
        cdef uint64_t ts_ns = 0, next_ns = 0, after_ns = 0
        rate.digits = predicted.digits = -1
        fh_json_object(json)
        while fh_json_key(json, &key):
            if fh_key_is(&key, b"fundingRate"): number(json, &rate)
            elif fh_key_is(&key, b"nextFundingRate"): number(json, &predicted)
            elif fh_key_is(&key, b"fundingTime"): time_ms(json, &next_ns)
            elif fh_key_is(&key, b"nextFundingTime"): time_ms(json, &after_ns)
            elif fh_key_is(&key, b"ts"): time_ms(json, &ts_ns)
            elif fh_key_is(&key, b"instId"): fh_json_string(json, &symbol)
            else: fh_json_skip(json)
        if json.error < 0:
            return json.error
        if rate.digits < 0 or next_ns == 0 or symbol.size == 0:
            return FH_ERROR_MISSING
        cdef const fh_instrument *row = self.listed(&symbol, batch)
        if row == NULL:
            return FH_OK
        cdef fh_event *event = fh_batch_event(batch, FH_FUNDING)
        if event == NULL:
            return FH_ERROR_FULL
        event.instrument = row.id
        event.channel = FH_CHANNEL_FUNDING
        event.ts_event_ns = ts_ns
        if ts_ns == 0:  # frames before 2023 carry none
            event.flags |= FH_TS_SUSPECT
        event.body.word[0] = rounded(event, &rate, 12)
        event.body.word[1] = rounded(event, &predicted, 12)
        event.body.word[2] = <int64_t>next_ns
        if after_ns > next_ns:
            event.body.word[3] = <int64_t><uint32_t>((after_ns - next_ns) // 1_000_000_000)
        return FH_OK

    cdef int open_interest(self, fh_json *json, Arg *arg, fh_batch *batch) noexcept nogil:
        cdef fh_key key
        cdef fh_text symbol = arg.symbol
        cdef fh_decimal size, value
        cdef uint64_t ts_ns = 0
        cdef uint32_t seen = 0
        value.digits = -1
        fh_json_object(json)
        while fh_json_key(json, &key):
            if fh_key_is(&key, b"oi"): seen |= fh_json_decimal(json, &size)
            elif fh_key_is(&key, b"oiUsd"): number(json, &value)
            elif fh_key_is(&key, b"ts"): seen |= <uint32_t>fh_json_time_ms(json, &ts_ns) << 1
            elif fh_key_is(&key, b"instId"): fh_json_string(json, &symbol)
            else: fh_json_skip(json)
        if json.error < 0:
            return json.error
        if seen != 3 or symbol.size == 0:
            return FH_ERROR_MISSING
        cdef const fh_instrument *row = self.listed(&symbol, batch)
        if row == NULL:
            return FH_OK
        cdef fh_event *event = fh_batch_event(batch, FH_OPEN_INTEREST)
        if event == NULL:
            return FH_ERROR_FULL
        event.instrument = row.id
        event.channel = FH_CHANNEL_OPEN_INTEREST
        event.ts_event_ns = ts_ns
        event.body.word[1] = rounded(event, &value, -row.price_exponent)
        return fh_batch_size(batch, event, row, &size, &event.body.word[0])

    cdef int liquidations(self, fh_json *json, Arg *arg, fh_batch *batch) noexcept nogil:
        """One instrument's liquidations: its name may come after `details`, so they are decoded last."""
        cdef fh_key key
        cdef fh_text symbol, held
        cdef fh_json details
        cdef int result
        symbol.size = held.size = 0
        fh_json_object(json)
        while fh_json_key(json, &key):
            if fh_key_is(&key, b"details"): fh_json_raw(json, &held)
            elif fh_key_is(&key, b"instId"): fh_json_string(json, &symbol)
            else: fh_json_skip(json)
        if json.error < 0:
            return json.error
        if symbol.size == 0 or held.size == 0:
            return FH_ERROR_MISSING
        cdef const fh_instrument *row = self.listed(&symbol, batch)
        if row == NULL:
            return FH_OK
        fh_json_open(&details, held.at, held.size)
        if not fh_json_array(&details):
            return details.error
        while fh_json_element(&details):
            result = self.liquidation(&details, row, batch)
            if result < 0:
                return result
        return fh_json_close(&details)

    cdef int liquidation(self, fh_json *json, const fh_instrument *row, fh_batch *batch) noexcept nogil:
        """LIQUIDATION: bankruptcy price, size in contracts, side of the liquidation order."""
        cdef fh_key key
        cdef fh_decimal price, size
        cdef uint64_t ts_ns = 0
        cdef uint8_t side = FH_SIDE_NONE
        cdef uint32_t seen = 0
        cdef int result
        fh_json_object(json)
        while fh_json_key(json, &key):
            if fh_key_is(&key, b"bkPx"): seen |= fh_json_decimal(json, &price)
            elif fh_key_is(&key, b"sz"): seen |= <uint32_t>fh_json_decimal(json, &size) << 1
            elif fh_key_is(&key, b"ts"): seen |= <uint32_t>fh_json_time_ms(json, &ts_ns) << 2
            elif fh_key_is(&key, b"side"):
                result = side_of(json, &side)
                if result < 0:
                    return result
                seen |= 8
            else: fh_json_skip(json)
        if json.error < 0:
            return json.error
        if seen != 15:
            return FH_ERROR_MISSING
        cdef fh_event *event = fh_batch_event(batch, FH_LIQUIDATION)
        if event == NULL:
            return FH_ERROR_FULL
        event.instrument = row.id
        event.channel = FH_CHANNEL_LIQUIDATION
        event.ts_event_ns = ts_ns
        event.body.word[3] = side
        result = fh_batch_price(batch, event, row, &price, &event.body.word[0])
        return fh_batch_size(batch, event, row, &size, &event.body.word[1]) if result == FH_OK else result

    cdef int candle(self, fh_json *json, Arg *arg, fh_batch *batch) noexcept nogil:
        """CANDLE from [ts, open, high, low, close, volume, volCcy, volCcyQuote, confirm]."""
        cdef fh_decimal value[6]  # open, high, low, close, volume, quote volume
        cdef uint64_t ts_ns = 0
        cdef int index = 0, result
        cdef uint32_t before = batch.event_count
        cdef fh_text confirm
        confirm.size = 0
        value[5].digits = -1
        if not fh_json_array(json):
            return json.error
        while fh_json_element(json):
            if index == 0: fh_json_time_ms(json, &ts_ns)
            elif index <= 5: fh_json_decimal(json, &value[index - 1])
            elif index == 7: number(json, &value[5])
            elif index == 8:
                if not fh_json_string(json, &confirm):
                    return json.error
            else: fh_json_skip(json)
            index += 1
        if json.error < 0:
            return json.error
        if index < 6 or arg.symbol.size == 0:
            return FH_ERROR_MISSING
        result = self.candle_event(FH_CANDLE, FH_CHANNEL_CANDLE, &arg.symbol, ts_ns, value, batch)
        if result == FH_OK and batch.event_count > before:
            batch.events[before].body.word[6] = <int64_t>ts_ns
            batch.events[before].body.word[7] = <int64_t>(
                (arg.interval_s | (FH_CANDLE_CLOSED if confirm.size == 1 and confirm.at[0] == c'1' else <uint64_t>0)) << 32)
        return result

    cdef int greeks(self, fh_json *json, Arg *arg, fh_batch *batch) noexcept nogil:
        """GREEKS from opt-summary: Black-Scholes delta, gamma, vega, theta; volatilities; forward price."""
        cdef fh_key key
        cdef fh_text symbol = arg.symbol
        cdef double value[12]
        cdef uint64_t ts_ns = 0
        cdef uint32_t seen = 0
        cdef int index
        for index in range(10):
            value[index] = NAN
        value[10] = value[11] = 0.0
        fh_json_object(json)
        while fh_json_key(json, &key):
            if fh_key_is(&key, b"deltaBS"):
                real(json, &value[0])
                seen |= 1
            elif fh_key_is(&key, b"gammaBS"): real(json, &value[1])
            elif fh_key_is(&key, b"vegaBS"): real(json, &value[2])
            elif fh_key_is(&key, b"thetaBS"): real(json, &value[3])
            elif fh_key_is(&key, b"bidVol"): real(json, &value[5])
            elif fh_key_is(&key, b"askVol"): real(json, &value[6])
            elif fh_key_is(&key, b"markVol"): real(json, &value[7])
            elif fh_key_is(&key, b"fwdPx"): real(json, &value[8])
            elif fh_key_is(&key, b"ts"): seen |= <uint32_t>fh_json_time_ms(json, &ts_ns) << 1
            elif fh_key_is(&key, b"instId"): fh_json_string(json, &symbol)
            else: fh_json_skip(json)
        if json.error < 0:
            return json.error
        if seen != 3 or symbol.size == 0:
            return FH_ERROR_MISSING
        cdef const fh_instrument *row = self.listed(&symbol, batch)
        if row == NULL:
            return FH_OK
        cdef fh_event *event = fh_batch_event(batch, FH_GREEKS)
        if event == NULL:
            return FH_ERROR_FULL
        event.instrument = row.id
        event.channel = FH_CHANNEL_GREEKS
        event.ts_event_ns = ts_ns
        event.slot_count = 3
        memcpy(event.body.word, value, sizeof(value))
        return FH_OK

    cdef int chain(self, fh_chain *chain, const fh_event *event) noexcept nogil:
        """prevSeqId is the last seqId; that alone makes keepalives and resets legal.

        A change wholly behind us is old (a second line, a duplicate). A reset that we missed looks the same, for
        ever: OLD_RUN_MAX of them without one in line is a gap."""
        cdef const fh_book_event *book = &event.body.book
        if event.flags & FH_SNAPSHOT:
            chain.last = book.last
            chain.state = FH_CHAIN_LIVE
            chain.old_run = 0
            return FH_VERDICT_APPLY
        if (book.has_prev and book.prev == chain.last) or (not book.has_prev and chain.last == 0 and book.last == 0):
            chain.last = book.last
            chain.state = FH_CHAIN_LIVE
            chain.old_run = 0
            return FH_VERDICT_APPLY
        if book.has_prev and (book.last == chain.last or (book.last < chain.last and book.prev < chain.last)):
            chain.old_run += 1
            return FH_VERDICT_OLD if chain.old_run < OLD_RUN_MAX else FH_VERDICT_GAP
        return FH_VERDICT_GAP

    cdef int checksum(self, const fh_book *book, const fh_event *event,
                      const fh_instrument *row) noexcept nogil:
        if not event.body.book.has_checksum:
            return -1
        return fh_book_crc_okx(book, -row.price_exponent, -row.size_exponent) == event.body.book.checksum

    # -- control plane ---------------------------------------------------------------------------------------

    def stream(self, symbol, channel):
        parts = symbol.split("-")
        if not 2 <= len(parts) <= 5 or not _NAME.fullmatch(symbol):
            raise VenueError(f"okx: {symbol!r} is no instrument name; they look like BTC-USDT, BTC-USDT-SWAP, "
                             f"BTC-USD-261225 or BTC-USD-261225-100000-C")
        name = channel.name
        kind = inst_type(parts)
        if kind == "SPOT" and name in NOT_ON_SPOT:
            raise VenueError(f"okx: {symbol} is spot and has no {name}; ask for it on a derivative, as {symbol}-SWAP")
        if name == "book":
            return book_stream(symbol, channel)
        if name == "candle":
            return candle_stream(symbol, channel)
        if name in ("liquidation", "greeks", "instrument"):
            return market_stream(symbol, name, kind, "-".join(parts[:2]))
        if name == "trade" and channel.speed == "all":
            return Stream("business", wire({"channel": "trades-all", "instId": symbol}), symbol, "trade", first_data_s=0.0)
        if name == "index" and len(parts) > 2:
            index = "-".join(parts[:2])
            raise VenueError(f"okx: the index of {symbol} is published under the name {index}; ask for index of {index}")
        if name == "funding" and kind != "SWAP":
            raise VenueError(f"okx: only perpetuals have funding, {symbol} is none; ask for it on "
                             f"{'-'.join(parts[:2])}-SWAP")
        if channel.speed or channel.depth:
            raise VenueError(f"okx: {name} has neither depth nor speed; ask for plain {name}"
                             + (" or trade@all" if name == "trade" else ""))
        endpoint, okx_name, first_data_s = STREAMS[name]
        carried = "trade" if name == "agg_trade" else name
        return Stream(endpoint, wire({"channel": okx_name, "instId": symbol}), symbol, carried, first_data_s=first_data_s)

    def subscribe(self, endpoint, streams, request_id):
        """Requests of at most 64 KB, as few as possible: each one is charged to the 480 an hour."""
        return requests("subscribe", streams, request_id)

    def unsubscribe(self, endpoint, streams, request_id):
        return requests("unsubscribe", streams, request_id)

    def ping(self, endpoint, request_id):
        """Text, not JSON; needed only after 20 s of silence."""
        return "ping"

    def control(self, payload):
        """One Ack per argument, its wire in canonical form.

        An error that names a request and a channel refuses that wire; one that names a request alone refuses the
        whole request (wire ""); one that names no request is a Complaint."""
        if payload == b"pong":
            return [Alive()]
        message = json.loads(payload)
        event = message.get("event", "")
        request_id = request_of(message)
        if event in ("subscribe", "unsubscribe"):
            return [Ack(request_id, wire(argument_of(message)))]
        code, reason = str(message.get("code", "")), str(message.get("msg", ""))
        if event == "notice" and code == "64008":
            return [Closing(reason)]
        if event in ("channel-conn-count", "login"):
            return [Alive()]
        if event == "channel-conn-count-error":
            return [Complaint(event, f"{event}: {message.get('connCount', '?')} connections already carry this channel",
                              wire(argument_of(message)))]
        refused = refused_wire(message)
        if event == "error" and request_id:
            return [Ack(request_id, refused, accepted=False, reason=f"{code} {reason}")]
        return [Complaint(code or event, reason or payload[:200].decode(errors="replace"), refused)]

    def instrument_requests(self):
        """20 requests per 2 s per IP and instType. Options are listed per underlying."""
        base = "/api/v5/public/instruments?instType="
        return [RestRequest(base + kind) for kind in ("SPOT", "SWAP", "FUTURES", "OPTION&uly=BTC-USD", "OPTION&uly=ETH-USD")]

    def instruments(self, bodies):
        return [instrument for body in bodies for instrument in instrument_list(body)]


cdef int chain_fields(fh_book_event *book, Arg *arg, uint32_t seen, int64_t sequence, int64_t prev,
                      int64_t checksum) noexcept nogil:
    """Fill in what a message says about its place in the sequence. seen: asks, bids, ts, seqId, prevSeqId."""
    cdef bint has_sequence = seen >> 3 & 1, has_prev = seen >> 4 & 1
    if seen & 7 != 7 or arg.symbol.size == 0:
        return FH_ERROR_MISSING
    if has_sequence and sequence < 0 or prev < -1 or (checksum >> 32 != 0 and checksum >> 31 != -1):
        return FH_ERROR_RANGE
    book.last = <uint64_t>sequence if has_sequence else 0
    if arg.channel == CHANNEL_WINDOW:
        book.window = 1
        return FH_OK
    if arg.action == ACTION_NONE or (arg.action == ACTION_UPDATE and has_sequence != has_prev):
        return FH_ERROR_MISSING
    if arg.action == ACTION_UNKNOWN:
        return FH_ERROR_UNKNOWN
    book.has_prev = prev >= 0
    book.prev = <uint64_t>prev if prev >= 0 else 0
    book.has_checksum = checksum != 0
    book.checksum = <uint32_t>checksum
    return FH_OK


# -- control plane helpers -----------------------------------------------------------------------------------

def inst_type(parts):
    """instType of an instrument name cut at its dashes."""
    if len(parts) == 2:
        return "SPOT"
    if len(parts) == 5:
        return "OPTION"
    return "SWAP" if parts[2] == "SWAP" else "FUTURES"


def book_stream(symbol, channel):
    if channel.speed not in ("", "100ms"):
        raise VenueError(f"okx: a book at {channel.speed} (books-l2-tbt, books50-l2-tbt) needs a login and VIP4; "
                         f"ask for book or book5, both at 100ms")
    if channel.depth in (0, BOOK_DEPTH):
        return Stream("public", wire({"channel": "books", "instId": symbol}), symbol, "book", BOOK_DEPTH, "in_band", FIRST_DATA_S)
    if channel.depth == 5:
        return Stream("public", wire({"channel": "books5", "instId": symbol}), symbol, "book", 5, "window", FIRST_DATA_S)
    if channel.depth == 50:
        raise VenueError("okx: 50 levels (books50-l2-tbt) need a login and VIP4; ask for book (400 levels) or book5")
    raise VenueError(f"okx: no book of {channel.depth} levels; ask for book (400 levels), book5, or quote for one level")


def candle_stream(symbol, channel):
    # 1M is a month elsewhere: only the hour, day and week may be written either way.
    interval = None if channel.speed.endswith("M") else CANDLES.get(channel.speed.lower())
    if interval is None or channel.depth:
        raise VenueError(f"okx: no candle of {channel.speed or 'no interval'!r}; ask for candle@ one of {', '.join(CANDLES)}")
    return Stream("business", wire({"channel": "candle" + interval, "instId": symbol}), symbol, "candle",
                  first_data_s=FIRST_DATA_S)


def market_stream(symbol, name, kind, family):
    """Streams OKX serves for a whole market or family: their Stream has no symbol, their events name theirs."""
    if name == "greeks":
        if kind != "OPTION":
            raise VenueError(f"okx: only options have greeks, {symbol} is none")
        return Stream("public", wire({"channel": "opt-summary", "instFamily": family}), "", name, first_data_s=FIRST_DATA_S)
    okx_name = "liquidation-orders" if name == "liquidation" else "instruments"
    return Stream("public", wire({"channel": okx_name, "instType": kind}), "", name, first_data_s=0.0)


def requests(op, streams, request_id):
    """[(request_id, text, streams)]: arguments joined until the next one would pass REQUEST_SIZE_MAX."""
    made, batch, size = [], [], 0
    for stream in streams:
        argument_size = len(stream.wire.encode()) + 1
        if batch and size + argument_size > REQUEST_SIZE_MAX - 100:  # 100: the envelope around the arguments
            made.append(batch)
            batch, size = [], 0
        batch.append(stream)
        size += argument_size
    if batch:
        made.append(batch)
    return [(number, f'{{"id":"{number}","op":"{op}","args":[{",".join(stream.wire for stream in batch)}]}}', batch)
            for number, batch in enumerate(made, request_id)]


def request_of(message):
    """Our number of the request, 0 where the venue gives none of ours."""
    text = str(message.get("id", ""))
    return int(text) if text.isascii() and text.isdigit() else 0


def argument_of(message):
    """The argument an event speaks of, from `arg` or from the event's own keys."""
    arg = message.get("arg")
    return arg if isinstance(arg, dict) else {key: message[key] for key in _ARG_KEYS if message.get(key)}


def refused_wire(message):
    """Wire an error speaks of, "" if it names none. 60018 names channel and instrument inside its text."""
    named = _NO_SUCH.search(str(message.get("msg", "")))
    if isinstance(message.get("arg"), dict):
        return wire(message["arg"])
    return wire({"channel": named[1], "inst" + named[2]: named[3]}) if named else ""


def instrument_list(body):
    answer = json.loads(body)
    if str(answer.get("code")) != "0":
        raise VenueError(f"okx: the instrument list was refused with code {answer.get('code')}: {answer.get('msg', '')}")
    # Fields of an announced listing stay empty until shortly before trading: the next list has them.
    return [instrument(row) for row in answer["data"] if row["tickSz"] and row["lotSz"]]


def instrument(row):
    """Instrument of one row; sizes of derivatives are contracts of ctVal * ctMult."""
    symbol, kind = row["instId"], row["instType"]
    pair = "-".join(symbol.split("-")[:2])
    expiry_ms = int(row["expTime"] or 0)
    day = time.strftime("%Y%m%d", time.gmtime(expiry_ms // 1000))
    canonical = {"SWAP": f"{pair}-PERP", "FUTURES": f"{pair}-{day}",
                 "OPTION": f"{pair}-{day}-{row['stk']}-{row['optType']}"}.get(kind, pair)
    contract = decimal.Decimal(row["ctVal"] or "1") * decimal.Decimal(row["ctMult"] or "1")
    return Instrument(
        symbol=symbol, canonical=canonical,
        kind={"SWAP": "perpetual", "FUTURES": "future", "OPTION": "option"}.get(kind, "spot"),
        tick=row["tickSz"], lot=row["lotSz"], multiplier=f"{contract.normalize():f}",
        inverse=row["ctType"] == "inverse", expiry_ns=expiry_ms * 1_000_000 if kind in ("FUTURES", "OPTION") else 0,
        strike=row["stk"] if kind == "OPTION" else "", listed=row.get("state", "live") != "test")


VENUE = Okx
