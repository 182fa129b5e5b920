# cython: language_level=3
"""Deribit v2, public market data as JSON-RPC 2.0 text.

Sources: docs.deribit.com (connection management, rate limits, market data collection, notifications, errors,
subscriptions), read up to 2026-07-31; probes of 2026-09; recorded frames of 2021.

Channels
    trade      trades.X.100ms (or @agg2), several trades a frame. A trade that closed a liquidated position is
               followed by a LIQUIDATION event on the same stream; liquidation is that stream.
    quote      quote.X, on every change of the touch.
    book       book.X.100ms (or @agg2): snapshot and changes of all levels.
    book1 book10 book20    book.X.none.N.100ms: a whole window each time.
    ticker mark index open_interest greeks funding    all from ticker.X.100ms, whose events carry the channel
               ticker: TICKER, MARK, INDEX, OPEN_INTEREST, and FUNDING of perpetuals or GREEKS of options.
    funding@100ms          perpetual.X.100ms: FUNDING and INDEX, channel funding.
    index of an index name (btc_usd)    deribit_price_index.btc_usd.
    candle@1m …            chart.trades.X.1 …
.raw channels are decoded as well, but subscribing to them needs a login (error 13778).

Event time is `timestamp`, in ms: matching of trades, last change of book and quote, computation of ticker values;
`tick`, the start, of candles. USDC books at 100 ms arrive up to 2.8 s after it: lag is measured, not an error.

Units: size is `amount`: USD on inverse futures, base coins on linear ones and on options; so the multiplier is 1
everywhere and contract_size is not needed. 24-hour sums are rounded to the instrument's exponents and flagged
INEXACT. Greeks are the venue's, volatilities are fractions (0.5 is 50 %; the wire says 50).

Continuity: prev_change_id is the change_id before on the same channel, absent or null on a snapshot. change_id
counts many instruments and jumps. A snapshot may be empty on both sides. A second subscribe brings no snapshot:
resync is unsubscribe, then subscribe. No checksum.
"""
import decimal
import json
import re
import time

cimport cython
from libc.math cimport NAN
from libc.string cimport memchr, memcpy, memset
from feedhandler._cext cimport *
from feedhandler.venue cimport Venue, bids_first, no_statistic, price_or_none, rounded, statistic
from feedhandler.venue import Ack, Alive, Closing, Complaint, Instrument, Reply, RestRequest, Stream, VenueError

CHANNELS_MAX = 500      # of one subscribe: "break them into batches, e.g. 2 messages of 500 each"
FIRST_DATA_S = 5.0      # seen: 131 books all within 624 ms
HEARTBEAT_S = 10        # the least the venue accepts; it sends test_request every 10.6 s then
OUR_CALLS = 0           # id of calls whose answer says only that the connection lives
CURRENCIES = ("BTC", "ETH", "USDC", "USDT")

PROFILES = {
    "v2": {
        "venue": "deribit", "endpoint": "v2", "as_of": "2026-07-31", "confidence": "official+measured",
        "sources": ["docs.deribit.com/articles/{connection-management-best-practices,rate-limits,"
                    "market-data-collection-best-practices,notifications,errors}, 2026-07-31", "probes of 2026-09"],
        "notes": ["server_ping_s is what we ask for in public/set_heartbeat (minimum 10)",
                  "idle_close_s is for a socket with no subscription and no heartbeat",
                  "whose credits a connection without a login spends is not published: taken as the address's"],
        "url": {"primary": "wss://www.deribit.com/ws/api/v2", "alternates": ["wss://streams.deribit.com/ws/api/v2"]},
        "auth": {"required": False, "kind": "login_msg", "unlocks": ["*.raw"]},
        "conn": {"max_open": 32, "max_open_scope": "ip", "counts_http": True, "attempts": [], "reject": "HTTP 429", "ban_s": None,
                 "first_sub_deadline_s": None, "settle_delay_s": 0},
        "client_msg": {"windows": [], "window_kind": "token_bucket", "counts_control_frames": False, "counts_ops": "all", "pace_ms": 0,
                       "credits": {"cost": 3000, "pool": 30000, "refill_per_s": 10000, "scope": "ip"},
                       "over": "10028 too_many_requests then possible disconnect"},
        "sub": {"max_per_conn": None, "soft_per_conn": None, "max_per_ip": None, "max_dup_per_product_channel": None,
                "max_args_per_msg": CHANNELS_MAX, "max_args_chars_per_conn": None, "max_msg_bytes": None, "weight_by_channel": {},
                "soft_by_channel": {}, "exclusive": [], "in_url": False, "ack": "per_request", "ack_means_data": True, "dup_sub": "ignored"},
        "liveness": {"server_ping": "app", "server_ping_s": HEARTBEAT_S, "pong_deadline_s": 10, "idle_close_s": 60,
                     "app_reply": "{\"jsonrpc\":\"2.0\",\"id\":0,\"method\":\"public/test\",\"params\":{}}"},
        "lifetime": {"max_s": None, "shutdown_notice": "\"maintenance\":true", "notice_lead_s": None},
        "wire": {"opcode": "text", "codec": "json", "payload_compression": "none", "permessage_deflate": "offered"},
        "overload": {"policy": "disconnect",
                     "close_codes": {"4000": "heartbeat close (test_request unanswered for 10 s)"},
                     "error_codes": {"10028": "too_many_requests", "11050": "bad_request", "13009": "unauthorized",
                                     "13019": "orderbook_closed",
                                     "13778": "raw_subscriptions_not_available_for_unauthorized",
                                     "connection_too_slow": "we read too slowly"}},
        "rate_model": {"ticker*": {"bytes_med": 746, "bytes_p99": 761, "bytes_max": 761, "min_interval_ms": 100},
                       "book*": {"bytes_med": 275, "bytes_p99": 730, "min_interval_ms": 100},
                       "trades*": {"bytes_med": 330, "min_interval_ms": 100}, "quote*": {"bytes_med": 250}},
        "book": {"snapshot": "in_band", "resync": "resubscribe", "checksum": "none",
                 "seq": {"last": "change_id", "prev": "prev_change_id", "rule": "prev_eq_last"}},
        "time": {"unit": "ms", "engine_field": "timestamp"},
        "rest": {"instruments": "GET /api/v2/public/get_instruments", "weight": 1, "budget": "1 request per s, burst 50"},
    },
}

CANDLES = {"1m": "1", "3m": "3", "5m": "5", "10m": "10", "15m": "15", "30m": "30", "1h": "60", "2h": "120", "3h": "180",
           "6h": "360", "12h": "720", "1d": "1D"}
"""Interval as the user writes it -> resolution as Deribit writes it."""
_NAME = re.compile(r"[\w-]{1,48}", re.ASCII)

cdef enum:
    CHANNEL_NONE, CHANNEL_UNKNOWN, CHANNEL_BOOK, CHANNEL_WINDOW, CHANNEL_TRADES, CHANNEL_QUOTE, CHANNEL_TICKER
    CHANNEL_PERPETUAL, CHANNEL_PRICE_INDEX, CHANNEL_CHART, CHANNEL_PLATFORM, CHANNEL_INSTRUMENT

cdef enum:
    METHOD_NONE, METHOD_UNKNOWN, METHOD_SUBSCRIPTION, METHOD_HEARTBEAT

# What the envelope says: the channel and its instrument.
cdef struct Source:
    int channel
    fh_text symbol
    uint32_t interval_s # of a candle
    fh_text data        # size 0: decoded where it stood

cdef struct Ticker:
    uint64_t ts_ns
    fh_decimal last, mark, index, open_interest, funding, high, low, volume, volume_usd
    double greeks[12]   # delta, gamma, vega, theta, rho, bid_iv, ask_iv, mark_iv, underlying, rate, 0, 0
    uint32_t seen       # timestamp, last_price, mark_price
    bint has_greeks


# -- channel names -------------------------------------------------------------------------------------------

cdef fh_text cut(fh_text *text) noexcept nogil:
    """Take the part before the first dot off the front of text."""
    cdef fh_text part = text[0]
    cdef const char *dot = <const char *>memchr(text.at, c'.', text.size)
    if dot == NULL:
        text.at += text.size
        text.size = 0
        return part
    part.size = <size_t>(dot - text.at)
    text.size -= part.size + 1
    text.at = dot + 1
    return part


cdef uint32_t resolution_s(const fh_text *text) noexcept nogil:
    """Seconds of a chart resolution: "1" to "720" minutes, or "1D"; 0: none of these."""
    cdef uint32_t minutes = 0
    cdef size_t at
    if fh_key_is(text, b"1D"):
        return 86_400
    if text.size == 0 or text.size > 4:
        return 0
    for at in range(text.size):
        if not c'0' <= text.at[at] <= c'9':
            return 0
        minutes = minutes * 10 + <uint32_t>(text.at[at] - c'0')
    return minutes * 60


cdef void parse_channel(fh_json *json, Source *source) noexcept nogil:
    """book.X.100ms, book.X.none.20.100ms, trades.X.100ms, chart.trades.X.1 …: kind and instrument."""
    cdef fh_text rest, kind
    source.channel = CHANNEL_UNKNOWN
    if not fh_json_string(json, &rest) or rest.escaped:
        return
    kind = cut(&rest)
    source.symbol = cut(&rest)
    if fh_key_is(&kind, b"book"):
        cut(&rest)  # the speed, or the grouping before depth and speed
        source.channel = CHANNEL_WINDOW if rest.size else CHANNEL_BOOK
    elif fh_key_is(&kind, b"trades"): source.channel = CHANNEL_TRADES
    elif fh_key_is(&kind, b"quote"): source.channel = CHANNEL_QUOTE
    elif fh_key_is(&kind, b"ticker"): source.channel = CHANNEL_TICKER
    elif fh_key_is(&kind, b"perpetual"): source.channel = CHANNEL_PERPETUAL
    elif fh_key_is(&kind, b"deribit_price_index"): source.channel = CHANNEL_PRICE_INDEX
    elif fh_key_is(&kind, b"chart"):
        source.symbol = cut(&rest)
        source.interval_s = resolution_s(&rest)
        if source.interval_s:
            source.channel = CHANNEL_CHART
    elif fh_key_is(&kind, b"platform_state"): source.channel = CHANNEL_PLATFORM
    elif fh_key_is(&kind, b"instrument"): source.channel = CHANNEL_INSTRUMENT


cdef int method_of(fh_json *json) noexcept nogil:
    cdef fh_text text
    if not fh_json_string(json, &text): return METHOD_UNKNOWN
    if fh_key_is(&text, b"subscription"): return METHOD_SUBSCRIPTION
    if fh_key_is(&text, b"heartbeat"): return METHOD_HEARTBEAT
    return METHOD_UNKNOWN


# -- values --------------------------------------------------------------------------------------------------

cdef inline void number(fh_json *json, fh_decimal *value) noexcept nogil:
    """A number or null; null leaves digits at -1."""
    if not (fh_json_peek(json) == c'n' and fh_json_null(json)):
        fh_json_decimal(json, value)


cdef inline void real(fh_json *json, double *value, double scale) noexcept nogil:
    if fh_json_peek(json) == c'n' and fh_json_null(json):
        return
    if fh_json_double(json, value):
        value[0] /= scale


cdef int side_of(fh_json *json, uint8_t *side) noexcept nogil:
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


cdef int trade_id_of(fh_json *json, uint64_t *id) noexcept nogil:
    """The number in "403691824", "ETH-34066587" or "BTC_USDC-1": digits behind the last dash."""
    cdef fh_text text
    cdef uint64_t value = 0
    cdef uint64_t digit
    cdef size_t at
    if not fh_json_string(json, &text):
        return json.error
    at = text.size
    while at > 0 and c'0' <= text.at[at - 1] <= c'9':
        at -= 1
    if at == text.size or text.size - at > 19 or (at > 0 and text.at[at - 1] != c'-'):
        return FH_ERROR_RANGE
    while at < text.size:
        digit = <uint64_t>(text.at[at] - c'0')
        value = value * 10 + digit
        at += 1
    id[0] = value
    return FH_OK


cdef enum:
    LIQUIDATED_NONE, LIQUIDATED_TAKER, LIQUIDATED_MAKER

cdef int liquidated(fh_json *json) noexcept nogil:
    """Whose order was a liquidation: "T" and "MT" the taker's, "M" the maker's."""
    cdef fh_text text
    if not fh_json_string(json, &text):
        return LIQUIDATED_NONE
    if fh_key_is(&text, b"T") or fh_key_is(&text, b"MT"): return LIQUIDATED_TAKER
    if fh_key_is(&text, b"M"): return LIQUIDATED_MAKER
    return LIQUIDATED_NONE


cdef fh_event *event_of(fh_batch *batch, uint8_t kind, uint8_t channel, const fh_instrument *row,
                        uint64_t ts_ns) noexcept nogil:
    cdef fh_event *event = fh_batch_event(batch, kind)
    if event != NULL:
        event.instrument = row.id
        event.channel = channel
        event.ts_event_ns = ts_ns
    return event


cdef int price_event(fh_batch *batch, uint8_t kind, uint8_t channel, const fh_instrument *row, uint64_t ts_ns,
                     const fh_decimal *price) noexcept nogil:
    """MARK or INDEX; nothing where the price is absent."""
    cdef fh_event *event
    if price.digits < 0:
        return FH_OK
    event = event_of(batch, kind, channel, row, ts_ns)
    return FH_ERROR_FULL if event == NULL else fh_batch_price(batch, event, row, price, &event.body.word[0])


cdef int funding_event(fh_batch *batch, uint8_t channel, const fh_instrument *row, uint64_t ts_ns,
                       const fh_decimal *rate) noexcept nogil:
    """FUNDING: paid continuously, quoted per 8 hours, no next settlement; nothing where the rate is absent."""
    cdef fh_event *event
    if rate.digits < 0:
        return FH_OK
    event = event_of(batch, FH_FUNDING, channel, row, ts_ns)
    if event == NULL:
        return FH_ERROR_FULL
    event.body.word[0] = rounded(event, rate, 12)
    event.body.word[1] = FH_UNDEFINED
    event.body.word[3] = 28_800
    return FH_OK


# -- ticker --------------------------------------------------------------------------------------------------

cdef void ticker_init(Ticker *ticker) noexcept nogil:
    cdef int index
    memset(ticker, 0, sizeof(Ticker))
    ticker.last.digits = ticker.mark.digits = ticker.index.digits = ticker.open_interest.digits = -1
    ticker.funding.digits = ticker.high.digits = ticker.low.digits = -1
    ticker.volume.digits = ticker.volume_usd.digits = -1
    for index in range(10):
        ticker.greeks[index] = NAN


cdef void parse_stats(fh_json *json, Ticker *ticker) noexcept nogil:
    cdef fh_key key
    fh_json_object(json)
    while fh_json_key(json, &key):
        if fh_key_is(&key, b"high"): number(json, &ticker.high)
        elif fh_key_is(&key, b"low"): number(json, &ticker.low)
        elif fh_key_is(&key, b"volume"): number(json, &ticker.volume)
        elif fh_key_is(&key, b"volume_usd"): number(json, &ticker.volume_usd)
        else: fh_json_skip(json)


cdef void parse_greeks(fh_json *json, Ticker *ticker) noexcept nogil:
    cdef fh_key key
    ticker.has_greeks = True
    fh_json_object(json)
    while fh_json_key(json, &key):
        if fh_key_is(&key, b"delta"): real(json, &ticker.greeks[0], 1)
        elif fh_key_is(&key, b"gamma"): real(json, &ticker.greeks[1], 1)
        elif fh_key_is(&key, b"vega"): real(json, &ticker.greeks[2], 1)
        elif fh_key_is(&key, b"theta"): real(json, &ticker.greeks[3], 1)
        elif fh_key_is(&key, b"rho"): real(json, &ticker.greeks[4], 1)
        else: fh_json_skip(json)


cdef void parse_ticker(fh_json *json, Ticker *ticker) noexcept nogil:
    cdef fh_key key
    fh_json_object(json)
    while fh_json_key(json, &key):
        if fh_key_is(&key, b"timestamp"): ticker.seen |= fh_json_time_ms(json, &ticker.ts_ns)
        elif fh_key_is(&key, b"last_price"):
            number(json, &ticker.last)
            ticker.seen |= 2
        elif fh_key_is(&key, b"mark_price"):
            ticker.seen |= <uint32_t>fh_json_decimal(json, &ticker.mark) << 2
        elif fh_key_is(&key, b"index_price"): number(json, &ticker.index)
        elif fh_key_is(&key, b"open_interest"): number(json, &ticker.open_interest)
        elif fh_key_is(&key, b"current_funding"): number(json, &ticker.funding)
        elif fh_key_is(&key, b"stats"): parse_stats(json, ticker)
        elif fh_key_is(&key, b"greeks"): parse_greeks(json, ticker)
        elif fh_key_is(&key, b"bid_iv"): real(json, &ticker.greeks[5], 100)
        elif fh_key_is(&key, b"ask_iv"): real(json, &ticker.greeks[6], 100)
        elif fh_key_is(&key, b"mark_iv"): real(json, &ticker.greeks[7], 100)
        elif fh_key_is(&key, b"underlying_price"): real(json, &ticker.greeks[8], 1)
        elif fh_key_is(&key, b"interest_rate"): real(json, &ticker.greeks[9], 1)
        else: fh_json_skip(json)


cdef int ticker_event(fh_batch *batch, const fh_instrument *row, const Ticker *ticker) noexcept nogil:
    """TICKER: last, high, low, volume; no open and no count are told. volume is in base coins."""
    cdef fh_event *event = event_of(batch, FH_TICKER, FH_CHANNEL_TICKER, row, ticker.ts_ns)
    cdef int result
    if event == NULL:
        return FH_ERROR_FULL
    event.slot_count = 2
    event.body.word[1] = FH_UNDEFINED
    no_statistic(event, 6)
    result = price_or_none(batch, event, row, &ticker.last, &event.body.word[0])
    if result == FH_OK:
        result = price_or_none(batch, event, row, &ticker.high, &event.body.word[2])
    if result == FH_OK:
        result = price_or_none(batch, event, row, &ticker.low, &event.body.word[3])
    event.body.word[4] = rounded(event, &ticker.volume, -row.size_exponent)
    statistic(event, 5, &ticker.volume_usd)
    return result


cdef int interest_events(fh_batch *batch, const fh_instrument *row, const Ticker *ticker) noexcept nogil:
    """OPEN_INTEREST and GREEKS, where the ticker has them."""
    cdef fh_event *event
    cdef int result
    if ticker.open_interest.digits >= 0:
        event = event_of(batch, FH_OPEN_INTEREST, FH_CHANNEL_TICKER, row, ticker.ts_ns)
        if event == NULL:
            return FH_ERROR_FULL
        event.body.word[1] = FH_UNDEFINED
        result = fh_batch_size(batch, event, row, &ticker.open_interest, &event.body.word[0])
        if result < 0:
            return result
    if ticker.has_greeks:
        event = event_of(batch, FH_GREEKS, FH_CHANNEL_TICKER, row, ticker.ts_ns)
        if event == NULL:
            return FH_ERROR_FULL
        event.slot_count = 3
        memcpy(event.body.word, ticker.greeks, sizeof(ticker.greeks))
    return FH_OK


@cython.final
cdef class Deribit(Venue):
    name = "deribit"
    profiles = PROFILES
    urls = {endpoint: profile["url"]["primary"] for endpoint, profile in PROFILES.items()}
    rest_url = "https://www.deribit.com"
    resync = "resubscribe"
    # mark_price, index_price and estimated delivery prices have up to 8 digits, whatever the tick (recorded ticker messages of 2021).
    price_digits_min = {"spot": 8, "perpetual": 8, "future": 8, "option": 8}

    # -- data plane ------------------------------------------------------------------------------------------

    cdef int decode(self, const char *payload, size_t size, uint64_t ts_recv_ns,
                    fh_batch *batch) noexcept nogil:
        cdef uint32_t ignored = batch.ignored, unlisted = batch.unlisted, before = batch.event_count
        cdef int result
        fh_batch_mark(batch)
        result = self.frame(payload, size, batch)
        if result < 0:
            fh_batch_rollback(batch)
            batch.ignored = ignored
            batch.unlisted = unlisted
            return result
        return <int>(batch.event_count - before)

    cdef int frame(self, const char *payload, size_t size, fh_batch *batch) noexcept nogil:
        """The JSON-RPC envelope: a notification, or the answer to a call of ours (control)."""
        cdef fh_json json
        cdef fh_key key
        cdef Source source
        cdef int method = METHOD_NONE, result
        cdef bint answer = False
        memset(&source, 0, sizeof(source))
        fh_json_open(&json, payload, size)
        fh_json_object(&json)
        while fh_json_key(&json, &key):
            if fh_key_is(&key, b"params") and source.channel == CHANNEL_NONE:
                result = self.params(&json, &source, batch)
                if result < 0:
                    return result
            elif fh_key_is(&key, b"method"): method = method_of(&json)
            else:
                answer |= fh_key_is(&key, b"result") or fh_key_is(&key, b"error")
                fh_json_skip(&json)
        result = fh_json_close(&json)
        if result < 0:
            return result
        if answer or method == METHOD_HEARTBEAT or source.channel == CHANNEL_PLATFORM:
            fh_batch_rollback(batch)
            batch.control = 1
            return FH_OK
        if method != METHOD_SUBSCRIPTION or source.channel <= CHANNEL_UNKNOWN:
            return FH_ERROR_UNKNOWN
        return FH_OK

    cdef int params(self, fh_json *json, Source *source, fh_batch *batch) noexcept nogil:
        """Channel and data, in either order: data before its channel is decoded after it."""
        cdef fh_key key
        cdef fh_json held
        cdef int result = FH_OK
        cdef bint has_data = False
        fh_json_object(json)
        while fh_json_key(json, &key):
            if fh_key_is(&key, b"channel"): parse_channel(json, source)
            elif fh_key_is(&key, b"data") and not has_data:
                has_data = True
                if source.channel == CHANNEL_NONE:
                    fh_json_raw(json, &source.data)
                else:
                    result = self.data(json, source, batch)
                if result < 0:
                    return json.error if json.error < 0 else result
            else: fh_json_skip(json)
        if json.error < 0:
            return json.error
        if source.channel > CHANNEL_UNKNOWN and not has_data:
            return FH_ERROR_MISSING
        if source.data.size == 0:
            return FH_OK
        fh_json_open(&held, source.data.at, source.data.size)
        result = self.data(&held, source, batch)
        return result if result < 0 else fh_json_close(&held)

    cdef int data(self, fh_json *json, Source *source, fh_batch *batch) noexcept nogil:
        if source.channel == CHANNEL_BOOK or source.channel == CHANNEL_WINDOW: return self.book(json, source, batch)
        if source.channel == CHANNEL_TICKER: return self.ticker(json, source, batch)
        if source.channel == CHANNEL_TRADES: return self.trades(json, batch)
        if source.channel == CHANNEL_QUOTE: return self.quote(json, source, batch)
        if source.channel == CHANNEL_CHART: return self.candle(json, source, batch)
        if source.channel == CHANNEL_PERPETUAL: return self.perpetual(json, source, batch)
        if source.channel == CHANNEL_PRICE_INDEX: return self.price_index(json, source, batch)
        if source.channel == CHANNEL_INSTRUMENT:  # a change of the list, which the supervisor reads over REST
            batch.ignored += 1
        return FH_OK if fh_json_skip(json) else json.error

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

    cdef int book(self, fh_json *json, Source *source, fh_batch *batch) noexcept nogil:
        """A snapshot or change (rows [action, price, amount]), or a whole window (rows [price, amount])."""
        cdef fh_key key
        cdef fh_text kind
        cdef fh_book_event book
        cdef uint64_t ts_ns = 0
        cdef uint32_t seen = 0, bids = 0
        cdef int result = FH_OK, skip = 0 if source.channel == CHANNEL_WINDOW else 1
        kind.size = 0
        memset(&book, 0, sizeof(book))
        book.change_begin = batch.change_count
        fh_json_object(json)
        while fh_json_key(json, &key):
            if fh_key_is(&key, b"bids"):
                if seen & 1: return FH_ERROR_MALFORMED
                bids = batch.change_count
                result = fh_batch_levels(batch, json, FH_BID, skip, 0)
                seen |= 1
            elif fh_key_is(&key, b"asks"):
                if seen & 2: return FH_ERROR_MALFORMED
                result = fh_batch_levels(batch, json, FH_ASK, skip, 0)
                seen |= 2
            elif fh_key_is(&key, b"timestamp"): seen |= <uint32_t>fh_json_time_ms(json, &ts_ns) << 2
            elif fh_key_is(&key, b"change_id"): seen |= <uint32_t>fh_json_uint(json, &book.last) << 3
            elif fh_key_is(&key, b"prev_change_id"):
                if not (fh_json_peek(json) == c'n' and fh_json_null(json)):
                    book.has_prev = fh_json_uint(json, &book.prev)
            elif fh_key_is(&key, b"type"): fh_json_string(json, &kind)
            else: fh_json_skip(json)
            if result < 0:
                return json.error if json.error < 0 else result
        if json.error < 0:
            return json.error
        if seen != 15:
            return FH_ERROR_MISSING
        bids_first(batch, book.change_begin, bids)
        book.change_count = batch.change_count - book.change_begin
        return self.book_event(source, ts_ns, &kind, &book, batch)

    cdef int book_event(self, Source *source, uint64_t ts_ns, const fh_text *kind, fh_book_event *book,
                        fh_batch *batch) noexcept nogil:
        cdef bint snapshot = source.channel == CHANNEL_WINDOW or fh_key_is(kind, b"snapshot")
        book.window = source.channel == CHANNEL_WINDOW
        if not snapshot and kind.size == 0:
            return FH_ERROR_MISSING
        if not snapshot and not fh_key_is(kind, b"change"):
            return FH_ERROR_UNKNOWN
        if not snapshot and not book.has_prev:
            return FH_ERROR_MISSING
        if snapshot:
            book.has_prev = 0
            book.prev = 0
        cdef const fh_instrument *row = self.listed(&source.symbol, batch)
        if row == NULL:
            batch.change_count = book.change_begin
            return FH_OK
        cdef fh_event *event = event_of(batch, FH_LEVEL, FH_CHANNEL_BOOK, row, ts_ns)
        if event == NULL:
            return FH_ERROR_FULL
        event.sequence = book.last
        event.body.book = book[0]
        if snapshot:
            event.flags |= FH_SNAPSHOT
        return fh_batch_scale(batch, event, row)

    cdef int trades(self, fh_json *json, fh_batch *batch) noexcept nogil:
        cdef int result
        if not fh_json_array(json):
            return json.error
        while fh_json_element(json):
            result = self.trade(json, batch)
            if result < 0:
                return result
        return json.error

    cdef int trade(self, fh_json *json, fh_batch *batch) noexcept nogil:
        """TRADE; legs, block and combo ids, contracts and the prices beside it are skipped."""
        cdef fh_key key
        cdef fh_text symbol
        cdef fh_decimal price, size
        cdef uint64_t ts_ns = 0, trade_id = 0, sequence = 0
        cdef uint8_t side = FH_SIDE_NONE
        cdef uint32_t seen = 0
        cdef int liquidation = LIQUIDATED_NONE
        cdef int result = FH_OK
        fh_json_object(json)
        while fh_json_key(json, &key):
            if fh_key_is(&key, b"price"): seen |= fh_json_decimal(json, &price)
            elif fh_key_is(&key, b"amount"): seen |= <uint32_t>fh_json_decimal(json, &size) << 1
            elif fh_key_is(&key, b"timestamp"): seen |= <uint32_t>fh_json_time_ms(json, &ts_ns) << 2
            elif fh_key_is(&key, b"instrument_name"): seen |= <uint32_t>fh_json_string(json, &symbol) << 3
            elif fh_key_is(&key, b"direction"):
                result = side_of(json, &side)
                seen |= 16
            elif fh_key_is(&key, b"trade_id"):
                result = trade_id_of(json, &trade_id)
                seen |= 32
            elif fh_key_is(&key, b"trade_seq"): fh_json_uint(json, &sequence)
            elif fh_key_is(&key, b"liquidation"): liquidation = liquidated(json)
            else: fh_json_skip(json)
            if result < 0:
                return result
        if json.error < 0:
            return json.error
        if seen != 63:
            return FH_ERROR_MISSING
        cdef const fh_instrument *row = self.listed(&symbol, batch)
        if row == NULL:
            return FH_OK
        cdef fh_event *event = event_of(batch, FH_TRADE, FH_CHANNEL_TRADE, row, ts_ns)
        if event == NULL:
            return FH_ERROR_FULL
        event.sequence = sequence
        event.body.word[2] = <int64_t>trade_id
        event.body.word[3] = <int64_t>(side | <uint64_t>1 << 32)
        result = fh_batch_price(batch, event, row, &price, &event.body.word[0])
        if result == FH_OK:
            result = fh_batch_size(batch, event, row, &size, &event.body.word[1])
        if result < 0 or liquidation == LIQUIDATED_NONE:
            return result
        if liquidation == LIQUIDATED_MAKER:
            side = FH_ASK if side == FH_BID else FH_BID
        return liquidation_event(batch, row, event, side)

    cdef int quote(self, fh_json *json, Source *source, fh_batch *batch) noexcept nogil:
        """QUOTE. No price, or no amount, is an empty side: price FH_UNDEFINED, size 0."""
        cdef fh_key key
        cdef fh_decimal value[4]  # bid price, bid amount, ask price, ask amount
        cdef uint64_t ts_ns = 0
        cdef uint32_t seen = 0
        cdef int result, side, index
        value[0].digits = value[1].digits = value[2].digits = value[3].digits = -1
        fh_json_object(json)
        while fh_json_key(json, &key):
            index = -1
            if fh_key_is(&key, b"best_bid_price"): index = 0
            elif fh_key_is(&key, b"best_bid_amount"): index = 1
            elif fh_key_is(&key, b"best_ask_price"): index = 2
            elif fh_key_is(&key, b"best_ask_amount"): index = 3
            if index >= 0:
                number(json, &value[index])
                seen |= 1 << index
            elif fh_key_is(&key, b"timestamp"): seen |= <uint32_t>fh_json_time_ms(json, &ts_ns) << 4
            else: fh_json_skip(json)
        if json.error < 0:
            return json.error
        if seen != 31:
            return FH_ERROR_MISSING
        cdef const fh_instrument *row = self.listed(&source.symbol, batch)
        if row == NULL:
            return FH_OK
        cdef fh_event *event = event_of(batch, FH_QUOTE, FH_CHANNEL_QUOTE, row, ts_ns)
        if event == NULL:
            return FH_ERROR_FULL
        for side in range(0, 4, 2):
            event.body.word[side] = FH_UNDEFINED
            if value[side].digits < 0 or value[side + 1].digits < 0 or value[side + 1].mantissa == 0:
                continue
            result = fh_batch_price(batch, event, row, &value[side], &event.body.word[side])
            if result == FH_OK:
                result = fh_batch_size(batch, event, row, &value[side + 1], &event.body.word[side + 1])
            if result < 0:
                return result
        return FH_OK

    cdef int ticker(self, fh_json *json, Source *source, fh_batch *batch) noexcept nogil:
        """TICKER, MARK, INDEX, FUNDING (perpetuals), OPEN_INTEREST, GREEKS (options), in this order."""
        cdef Ticker ticker
        cdef int result
        ticker_init(&ticker)
        parse_ticker(json, &ticker)
        if json.error < 0:
            return json.error
        if ticker.seen != 7:
            return FH_ERROR_MISSING
        cdef const fh_instrument *row = self.listed(&source.symbol, batch)
        if row == NULL:
            return FH_OK
        result = ticker_event(batch, row, &ticker)
        if result == FH_OK:
            result = price_event(batch, FH_MARK, FH_CHANNEL_TICKER, row, ticker.ts_ns, &ticker.mark)
        if result == FH_OK:
            result = price_event(batch, FH_INDEX, FH_CHANNEL_TICKER, row, ticker.ts_ns, &ticker.index)
        if result == FH_OK:
            result = funding_event(batch, FH_CHANNEL_TICKER, row, ticker.ts_ns, &ticker.funding)
        return interest_events(batch, row, &ticker) if result == FH_OK else result

    cdef int perpetual(self, fh_json *json, Source *source, fh_batch *batch) noexcept nogil:
        """FUNDING and INDEX of perpetual.X."""
        cdef fh_key key
        cdef fh_decimal rate, index
        cdef uint64_t ts_ns = 0
        cdef uint32_t seen = 0
        cdef int result
        index.digits = -1
        fh_json_object(json)
        while fh_json_key(json, &key):
            if fh_key_is(&key, b"interest"): seen |= fh_json_decimal(json, &rate)
            elif fh_key_is(&key, b"timestamp"): seen |= <uint32_t>fh_json_time_ms(json, &ts_ns) << 1
            elif fh_key_is(&key, b"index_price"): number(json, &index)
            else: fh_json_skip(json)
        if json.error < 0:
            return json.error
        if seen != 3:
            return FH_ERROR_MISSING
        cdef const fh_instrument *row = self.listed(&source.symbol, batch)
        if row == NULL:
            return FH_OK
        result = funding_event(batch, FH_CHANNEL_FUNDING, row, ts_ns, &rate)
        return price_event(batch, FH_INDEX, FH_CHANNEL_FUNDING, row, ts_ns, &index) if result == FH_OK else result

    cdef int price_index(self, fh_json *json, Source *source, fh_batch *batch) noexcept nogil:
        """INDEX of deribit_price_index.btc_usd, on the instrument listed under that index name."""
        cdef fh_key key
        cdef fh_decimal price
        cdef uint64_t ts_ns = 0
        cdef uint32_t seen = 0
        fh_json_object(json)
        while fh_json_key(json, &key):
            if fh_key_is(&key, b"price"): seen |= fh_json_decimal(json, &price)
            elif fh_key_is(&key, b"timestamp"): seen |= <uint32_t>fh_json_time_ms(json, &ts_ns) << 1
            else: fh_json_skip(json)
        if json.error < 0:
            return json.error
        if seen != 3:
            return FH_ERROR_MISSING
        cdef const fh_instrument *row = self.listed(&source.symbol, batch)
        return FH_OK if row == NULL else price_event(batch, FH_INDEX, FH_CHANNEL_INDEX, row, ts_ns, &price)

    cdef int candle(self, fh_json *json, Source *source, fh_batch *batch) noexcept nogil:
        """CANDLE of chart.trades.X.N: volume in base coins, cost in quote currency."""
        cdef fh_key key
        cdef fh_decimal value[6]  # open, high, low, close, volume, cost
        cdef uint64_t ts_ns = 0
        cdef uint32_t seen = 0
        cdef int result, index
        value[5].digits = -1
        fh_json_object(json)
        while fh_json_key(json, &key):
            index = -1
            if fh_key_is(&key, b"open"): index = 0
            elif fh_key_is(&key, b"high"): index = 1
            elif fh_key_is(&key, b"low"): index = 2
            elif fh_key_is(&key, b"close"): index = 3
            elif fh_key_is(&key, b"volume"): index = 4
            elif fh_key_is(&key, b"cost"): index = 5
            if index >= 0: seen |= <uint32_t>fh_json_decimal(json, &value[index]) << index
            elif fh_key_is(&key, b"tick"): seen |= <uint32_t>fh_json_time_ms(json, &ts_ns) << 6
            else: fh_json_skip(json)
        if json.error < 0:
            return json.error
        if seen & 95 != 95:  # all but cost
            return FH_ERROR_MISSING
        cdef const fh_instrument *row = self.listed(&source.symbol, batch)
        if row == NULL:
            return FH_OK
        cdef fh_event *event = event_of(batch, FH_CANDLE, FH_CHANNEL_CANDLE, row, ts_ns)
        if event == NULL:
            return FH_ERROR_FULL
        event.slot_count = 2
        for index in range(4):
            result = fh_batch_price(batch, event, row, &value[index], &event.body.word[index])
            if result < 0:
                return result
        event.body.word[4] = rounded(event, &value[4], -row.size_exponent)
        statistic(event, 5, &value[5])
        event.body.word[6] = <int64_t>ts_ns
        event.body.word[7] = <int64_t>(<uint64_t>source.interval_s << 32)
        return FH_OK

    cdef int chain(self, fh_chain *chain, const fh_event *event) noexcept nogil:
        """prev_change_id is the change_id before; ids only grow, so a change up to ours is old."""
        cdef const fh_book_event *book = &event.body.book
        if not event.flags & FH_SNAPSHOT and book.prev != chain.last:
            return FH_VERDICT_OLD if book.last <= chain.last else FH_VERDICT_GAP
        chain.last = book.last
        chain.state = FH_CHAIN_LIVE
        return FH_VERDICT_APPLY

    # -- control plane ---------------------------------------------------------------------------------------

    def stream(self, symbol, channel):
        name, speed = channel.name, channel.speed
        if not _NAME.fullmatch(symbol):
            raise VenueError(f"deribit: {symbol!r} is no instrument name; they look like BTC-PERPETUAL, BTC-25DEC26, "
                             f"BTC-25DEC26-100000-C, BTC_USDC-PERPETUAL or BTC_USDC")
        if speed == "raw":
            raise VenueError(f"deribit: raw channels need a login (error 13778); ask for {name}@100ms")
        if name == "book":
            return book_stream(symbol, channel)
        if name == "candle":
            return candle_stream(symbol, channel)
        if name in ("agg_trade", "instrument"):
            raise VenueError(f"deribit: there is no {name} channel; ask for {'trade' if name == 'agg_trade' else 'ticker'}")
        if channel.depth or speed not in ("", "100ms", "agg2"):
            raise VenueError(f"deribit: {name} has no depth, and the speeds 100ms and agg2; {channel.depth or speed} was asked for")
        if name in ("trade", "liquidation"):
            return Stream("v2", f"trades.{symbol}.{speed or '100ms'}", symbol, "trade", first_data_s=0.0)
        if name == "quote":
            return Stream("v2", f"quote.{symbol}", symbol, "quote", first_data_s=FIRST_DATA_S)
        if name == "index" and symbol.islower():
            return Stream("v2", f"deribit_price_index.{symbol}", symbol, "index", first_data_s=FIRST_DATA_S)
        if name == "funding" and not symbol.endswith("-PERPETUAL"):
            raise VenueError(f"deribit: only perpetuals have funding, {symbol} is none; ask for it on BTC-PERPETUAL or the like")
        if name == "greeks" and symbol.count("-") < 3:
            raise VenueError(f"deribit: only options have greeks, {symbol} is none")
        if name == "funding" and speed:
            return Stream("v2", f"perpetual.{symbol}.{speed}", symbol, "funding", first_data_s=FIRST_DATA_S)
        return Stream("v2", f"ticker.{symbol}.{speed or '100ms'}", symbol, "ticker", first_data_s=FIRST_DATA_S)

    def subscribe(self, endpoint, streams, request_id):
        """At most 500 channels a call; each call costs 3,000 of the 30,000 credits. request_id starts at 1 or above:
        0 is for our own calls."""
        return requests("public/subscribe", streams, request_id)

    def unsubscribe(self, endpoint, streams, request_id):
        return requests("public/unsubscribe", streams, request_id)

    def on_open(self, endpoint):
        return [call("public/set_heartbeat", {"interval": HEARTBEAT_S}, OUR_CALLS)]

    def control(self, payload):
        """One Ack per subscribe or unsubscribe, without a wire: its `wires` lists exactly the channels the venue
        accepted, in its own order. A channel of that request that is not listed was refused without an error."""
        message = json.loads(payload)
        request_id = message.get("id")
        request_id = request_id if isinstance(request_id, int) else 0
        if "error" in message:
            return refusal(request_id, message["error"])
        if isinstance(message.get("result"), list):
            return [Ack(request_id, wires=tuple(message["result"]))]
        params = message.get("params")
        params = params if isinstance(params, dict) else {}
        if message.get("method") == "heartbeat" and params.get("type") == "test_request":
            return [Reply(call("public/test", {}, OUR_CALLS))]
        state = params.get("data")
        if isinstance(state, dict) and state.get("maintenance"):
            return [Closing("platform_state: maintenance")]
        return [Alive()]

    def instrument_requests(self):
        """1 request per s, burst 50; each occupies one of the 32 connections per address while it runs."""
        return [RestRequest(f"/api/v2/public/get_instruments?currency={currency}&expired=false") for currency in CURRENCIES]

    def instruments(self, bodies):
        """Futures, perpetuals, options and spot; combos are not instruments of ours (their legs are)."""
        found = {}
        for body in bodies:
            answer = json.loads(body, parse_float=decimal.Decimal)
            if "error" in answer:
                raise VenueError(f"deribit: the instrument list was refused: {answer['error']}")
            for row in answer["result"]:
                if row["kind"] in ("future", "option", "spot"):
                    found[row["instrument_name"]] = instrument(row)
        return list(found.values())


cdef int liquidation_event(fh_batch *batch, const fh_instrument *row, const fh_event *trade, uint8_t side) noexcept nogil:
    """LIQUIDATION beside its trade: same price and size, side of the liquidation order, no order id."""
    cdef int64_t price = trade.body.word[0], size = trade.body.word[1]
    cdef uint8_t flags = trade.flags
    cdef fh_event *event = event_of(batch, FH_LIQUIDATION, FH_CHANNEL_TRADE, row, trade.ts_event_ns)
    if event == NULL:
        return FH_ERROR_FULL
    event.flags = flags
    event.body.word[0] = price
    event.body.word[1] = size
    event.body.word[3] = side
    return FH_OK


# -- control plane helpers -----------------------------------------------------------------------------------

def book_stream(symbol, channel):
    if channel.depth:
        if channel.depth not in (1, 10, 20) or channel.speed not in ("", "100ms"):
            raise VenueError(f"deribit: no book of {channel.depth} levels at {channel.speed or '100ms'}; ask for book1, book10, "
                             f"book20 (windows at 100ms) or book (all levels)")
        return Stream("v2", f"book.{symbol}.none.{channel.depth}.100ms", symbol, "book", channel.depth, "window", FIRST_DATA_S)
    if channel.speed not in ("", "100ms", "agg2"):
        raise VenueError(f"deribit: no book at {channel.speed}; ask for book@100ms or book@agg2")
    return Stream("v2", f"book.{symbol}.{channel.speed or '100ms'}", symbol, "book", 0, "in_band", FIRST_DATA_S)


def candle_stream(symbol, channel):
    resolution = CANDLES.get(channel.speed.lower())
    if resolution is None or channel.depth:
        raise VenueError(f"deribit: no candle of {channel.speed or 'no interval'!r}; ask for candle@ one of {', '.join(CANDLES)}")
    return Stream("v2", f"chart.trades.{symbol}.{resolution}", symbol, "candle", first_data_s=0.0)


def call(method, params, request_id):
    """Text of a JSON-RPC call."""
    return json.dumps({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params}, separators=(",", ":"))


def requests(method, streams, request_id):
    """[(request_id, text, streams)], CHANNELS_MAX channels a call."""
    batches = [streams[at:at + CHANNELS_MAX] for at in range(0, len(streams), CHANNELS_MAX)]
    return [(number, call(method, {"channels": [stream.wire for stream in batch]}, number), batch)
            for number, batch in enumerate(batches, request_id)]


def refusal(request_id, error):
    """An error refuses the request it names; without one, or on a call of ours, it is a Complaint."""
    error = error if isinstance(error, dict) else {"message": error}
    code, reason = str(error.get("code", "")), str(error.get("message", ""))
    if request_id == OUR_CALLS:
        return [Complaint(code, f"{reason} {error.get('data') or ''}".strip())]
    return [Ack(request_id, accepted=False, reason=f"{code} {reason}")]


def exact(value):
    """Decimal text of a JSON number, without exponent and trailing zeros."""
    text = f"{decimal.Decimal(value):f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def instrument(row):
    """Instrument of one row. amount is USD (inverse futures) or coins: one unit of size is one of them."""
    parts = row["instrument_name"].split("-")
    base, _, quote = parts[0].partition("_")
    pair = f"{base}-{quote or 'USD'}"
    perpetual = row.get("settlement_period") == "perpetual"
    kind = "perpetual" if perpetual else row["kind"]
    dated = kind in ("future", "option")
    day = time.strftime("%Y%m%d", time.gmtime(row["expiration_timestamp"] // 1000)) if dated else ""
    strike = exact(row["strike"]) if kind == "option" else ""
    if kind == "option":
        canonical = f"{pair}-{day}-{strike}-{'C' if row['option_type'] == 'call' else 'P'}"
    else:
        canonical = {"spot": pair, "perpetual": f"{pair}-PERP", "future": f"{pair}-{day}"}[kind]
    reversed_ = row.get("instrument_type", "linear" if quote else "reversed") == "reversed"
    return Instrument(
        symbol=row["instrument_name"], canonical=canonical, kind=kind, tick=exact(row["tick_size"]),
        lot=exact(row["min_trade_amount"]), inverse=reversed_ and kind in ("future", "perpetual"),
        expiry_ns=row["expiration_timestamp"] * 1_000_000 if dated else 0, strike=strike,
        listed=bool(row.get("is_active", True)))


VENUE = Deribit
