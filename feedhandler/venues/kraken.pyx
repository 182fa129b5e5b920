# cython: language_level=3
"""Kraken spot, WebSocket v2, public market data as JSON text.

Sources: docs.kraken.com/api/docs/websocket-v2 (book, trade, ticker, ohlc, instrument, status, ping), the v2
checksum guide, and GET /0/public/AssetPairs, documents as of 2026-07-31; recorded frames of 2021 and 2026.

Channels
    book         `book` at depth 10, 25, 100, 500 or 1000 (0 asks for 1000): snapshot in band, a CRC-32 in every
                 message, no sequence. We truncate to the depth; the venue sends nothing for what falls out.
    trade        `trade` with snapshot false. A snapshot that comes anyway is history: ignored and counted.
    quote        `ticker` with event_trigger "bbo": changes of size alone may not trigger it.
    ticker       `ticker` with event_trigger "trades".
    candle@1m    `ohlc` (1m 5m 15m 30m 1h 4h 1d 1w 15d); it has no quote volume.
A symbol has one `ticker` subscription, so quote and ticker of one symbol exclude each other on a connection.

Event time is `timestamp`: of the book update, of the match, of the ticker. A message without one is TS_SUSPECT.

Checksum: over digits as sent, trailing zeros included (`0.00005100`). So a book's exponents are at least the
digits as written, not just the digits that hold the value, and AssetPairs' pair_decimals and lot_decimals give
them beforehand. Averages (vwap) and sums (volume) are rounded to them and flagged INEXACT.

Names: v2 says BTC/USD where AssetPairs says XBT/USD; assets are renamed one by one, whole names only.
"""
import decimal
import json

cimport cython
from libc.stdlib cimport calloc, free
from libc.string cimport memset
from feedhandler._cext cimport *
from feedhandler.venue cimport Venue, no_statistic, statistic
from feedhandler.venue import Ack, Alive, Closing, Complaint, Instrument, RestRequest, Stream, VenueError

cdef extern from "fh_batch.h" nogil:
    int CHANGE_CUT "FH_CHANGE_CUT"  # in a change's digits: the text had more than a mantissa holds

DEPTHS = (10, 25, 100, 500, 1000)
INTERVALS = {"1m": 1, "5m": 5, "15m": 15, "30m": 30, "1h": 60, "4h": 240, "1d": 1440, "1w": 10080, "15d": 21600}
ASSETS = {"XBT": "BTC", "XDG": "DOGE"}  # names of v1 and REST that v2 does not use
SYMBOLS_PER_REQUEST = 50    # no limit is published; a bad symbol costs only itself
REQUESTS_KEPT = 1024        # requests whose refusals we can still tell apart
FIRST_DATA_S = 10.0         # snapshots of 1,000 levels came 0.7 to 1.2 s after subscribing

PROFILES = {
    "spot.v2": {
        "venue": "kraken", "endpoint": "spot.v2", "as_of": "2026-07-31", "confidence": "official",
        "sources": ["docs.kraken.com/api/docs/websocket-v2", "recordings of 2021 and 2026"],
        "notes": ["after maintenance wait at least 5 s between connection attempts"],
        "url": {"primary": "wss://ws.kraken.com/v2",
                "alternates": ["wss://colo-london.vip-ws.kraken.com/v2", "wss://beta-ws.kraken.com/v2"]},
        "conn": {"max_open": None, "max_open_scope": None, "counts_http": False, "attempts": [{"n": 150, "per_s": 600, "scope": "ip"}],
                 "reject": "Cloudflare", "ban_s": 600, "first_sub_deadline_s": None, "settle_delay_s": 0},
        "client_msg": {"windows": [], "window_kind": "unknown", "counts_control_frames": False, "counts_ops": "all", "pace_ms": 100,
                       "credits": None, "over": "{\"Error\":\"Exceeded msg rate\"}, connection kept"},
        "sub": {"max_per_conn": None, "soft_per_conn": None, "max_per_ip": None, "max_dup_per_product_channel": None, "max_args_per_msg": None,
                "max_args_chars_per_conn": None, "max_msg_bytes": None, "weight_by_channel": {}, "soft_by_channel": {}, "exclusive": [],
                "in_url": False, "ack": "per_topic", "ack_means_data": True, "dup_sub": "error"},
        "liveness": {"server_ping": "none", "client_ping": "{\"method\":\"ping\"}", "client_ping_s": 30,
                     "idle_close_s": 60, "data_heartbeat": "{\"channel\":\"heartbeat\"}"},
        "lifetime": {"max_s": None, "shutdown_notice": "\"system\":\"maintenance\"", "notice_lead_s": None},
        "wire": {"opcode": "text", "codec": "json", "payload_compression": "none", "max_frame_bytes_seen": 79_307},
        "overload": {"policy": "unknown", "error_codes": {"Exceeded msg rate": "slow down"}},
        "rate_model": {"book": {"bytes_med": 186, "bytes_p99": 191, "bytes_max": 63_930}},
        "book": {"snapshot": "in_band", "seq": {"rule": "none"}, "checksum": "kraken_crc32_top10",
                 "truncate_to_depth": True, "resync": "resubscribe"},
        "time": {"unit": "iso8601", "engine_field": "timestamp"},
        "rest": {"instruments": "GET /0/public/AssetPairs", "weight": 1, "budget": None},
    },
}

cdef enum:
    CHANNEL_NONE, CHANNEL_BOOK, CHANNEL_TRADE, CHANNEL_TICKER, CHANNEL_OHLC, CHANNEL_NAMED, CHANNEL_CONTROL, CHANNEL_UNKNOWN

cdef enum:
    TYPE_NONE, TYPE_SNAPSHOT, TYPE_UPDATE, TYPE_UNKNOWN

cdef enum:
    TRIGGER_BBO = 1     # ticker messages of this symbol are quotes (also where nobody told us)
    TRIGGER_TRADES = 2  # … are tickers

cdef enum:
    HAS_BIDS = 1
    HAS_ASKS = 2
    HAS_CHECKSUM = 4
    HAS_SYMBOL = 8
    HAS_SIDE = 16
    HAS_ID = 32

# The most digits a book's prices and sizes were written with since its snapshot: the checksum is over these, whatever the row has.
cdef struct Written:
    int price, size
    bint known

# Every field of any element that we use. A number not met has digits -1.
cdef struct Element:
    fh_text symbol
    fh_decimal number[10]
    uint64_t ts_ns, begin_ns, count, interval, trade_id
    uint32_t checksum
    uint8_t has, side

# Places in Element.number.
cdef enum:
    PRICE, QTY, BID, BID_QTY, ASK, ASK_QTY, OPEN, HIGH, LOW, VWAP
    NUMBER_COUNT

cdef enum:
    LAST = PRICE        # a ticker's last and a candle's close stand where a trade's price does
    VOLUME = QTY


cdef int channel_of(const fh_text *text) noexcept nogil:
    if fh_key_is(text, b"book"): return CHANNEL_BOOK
    if fh_key_is(text, b"trade"): return CHANNEL_TRADE
    if fh_key_is(text, b"ticker"): return CHANNEL_TICKER
    if fh_key_is(text, b"ohlc"): return CHANNEL_OHLC
    if fh_key_is(text, b"heartbeat") or fh_key_is(text, b"status"): return CHANNEL_CONTROL
    if fh_key_is(text, b"instrument"): return CHANNEL_NAMED
    return CHANNEL_UNKNOWN


cdef int type_of(const fh_text *text) noexcept nogil:
    if fh_key_is(text, b"update"): return TYPE_UPDATE
    if fh_key_is(text, b"snapshot"): return TYPE_SNAPSHOT
    return TYPE_UNKNOWN


cdef int place_of(const fh_key *key) noexcept nogil:
    """Where a number of this name goes, or -1. Names of all channels; none means two things."""
    if fh_key_is(key, b"price") or fh_key_is(key, b"last") or fh_key_is(key, b"close"): return PRICE
    if fh_key_is(key, b"qty") or fh_key_is(key, b"volume"): return QTY
    if fh_key_is(key, b"bid"): return BID
    if fh_key_is(key, b"bid_qty"): return BID_QTY
    if fh_key_is(key, b"ask"): return ASK
    if fh_key_is(key, b"ask_qty"): return ASK_QTY
    if fh_key_is(key, b"open"): return OPEN
    if fh_key_is(key, b"high"): return HIGH
    if fh_key_is(key, b"low"): return LOW
    if fh_key_is(key, b"vwap"): return VWAP
    return -1


cdef void parse_side(fh_json *json, Element *element) noexcept nogil:
    cdef fh_text text
    if not fh_json_string(json, &text):
        return
    if fh_key_is(&text, b"buy"):
        element.side = FH_BID
    elif fh_key_is(&text, b"sell"):
        element.side = FH_ASK
    if element.side:
        element.has |= HAS_SIDE


cdef int levels(fh_json *json, Element *element, uint8_t mark, uint8_t side, fh_batch *batch) noexcept nogil:
    """One side of a book message; a side that comes twice is malformed."""
    if element.has & mark:
        return FH_ERROR_MALFORMED
    element.has |= mark
    return fh_batch_levels_object(batch, json, side, b"price", b"qty")


cdef int parse_element(fh_json *json, Element *element, fh_batch *batch) noexcept nogil:
    """One object of `data`, whatever its channel and the order of its keys. Levels go to the batch, unscaled."""
    cdef fh_key key
    cdef uint64_t number
    cdef int place, answer = FH_OK
    fh_json_object(json)
    while answer == FH_OK and fh_json_key(json, &key):
        if fh_key_is(&key, b"symbol"):
            if fh_json_string(json, &element.symbol):
                element.has |= HAS_SYMBOL
        elif fh_key_is(&key, b"bids"):
            answer = levels(json, element, HAS_BIDS, FH_BID, batch)
        elif fh_key_is(&key, b"asks"):
            answer = levels(json, element, HAS_ASKS, FH_ASK, batch)
        elif fh_key_is(&key, b"checksum"):
            if fh_json_uint(json, &number):
                if number >> 32:
                    return FH_ERROR_RANGE
                element.checksum = <uint32_t>number
                element.has |= HAS_CHECKSUM
        elif fh_key_is(&key, b"timestamp"):
            fh_json_time_iso(json, &element.ts_ns)
        elif fh_key_is(&key, b"interval_begin"):
            fh_json_time_iso(json, &element.begin_ns)
        elif fh_key_is(&key, b"trade_id"):
            if fh_json_uint(json, &element.trade_id):
                element.has |= HAS_ID
        elif fh_key_is(&key, b"trades"):
            fh_json_uint(json, &element.count)
        elif fh_key_is(&key, b"interval"):
            fh_json_uint(json, &element.interval)
        elif fh_key_is(&key, b"side"):
            parse_side(json, element)
        else:
            place = place_of(&key)
            if place < 0 or fh_json_peek(json) == c'n':
                fh_json_skip(json)
            elif element.number[place].digits >= 0:
                return FH_ERROR_MALFORMED   # the same name twice
            else:
                fh_json_decimal(json, &element.number[place])
    return answer if answer != FH_OK else json.error


cdef bint complete(const Element *element, const int *places, int count) noexcept nogil:
    """Whether every number in places was sent."""
    cdef int i
    for i in range(count):
        if element.number[places[i]].digits < 0:
            return False
    return True


cdef int64_t rounded(fh_event *event, const fh_decimal *value, int exponent) noexcept nogil:
    """A number for display: rounded to the exponent and flagged, or undefined."""
    cdef uint16_t flags = value.flags
    cdef int64_t mantissa
    if value.digits < 0:
        return FH_UNDEFINED
    mantissa = fh_decimal_rescale(value, -exponent, &flags)
    event.flags |= <uint8_t>flags
    return mantissa


cdef int as_written(fh_batch *batch, const fh_event *event, const fh_instrument *row, Written *written) noexcept nogil:
    """Note the digits a book is written with, trailing zeros included. FH_ERROR_DIGITS if that is more than the row holds."""
    cdef const fh_change *change = &batch.changes[event.body.book.change_begin]
    cdef int price, size
    cdef uint32_t i
    if event.flags & FH_SNAPSHOT:
        written.price = written.size = 0
    for i in range(event.body.book.change_count):
        written.price = max(written.price, change[i].price_digits & ~CHANGE_CUT)
        written.size = max(written.size, change[i].size_digits & ~CHANGE_CUT)
    written.known = True
    price, size = max(written.price, -<int>row.price_exponent), max(written.size, -<int>row.size_exponent)
    if (price == -row.price_exponent and size == -row.size_exponent) or batch.accept_inexact:
        return FH_OK
    batch.wanted_instrument = row.id
    batch.wanted_price_digits, batch.wanted_size_digits = <int8_t>price, <int8_t>size
    return FH_ERROR_DIGITS


@cython.final
cdef class Kraken(Venue):
    name = "kraken"
    profiles = PROFILES
    urls = {endpoint: profile["url"]["primary"] for endpoint, profile in PROFILES.items()}
    rest_url = "https://api.kraken.com"
    resync = "resubscribe"

    cdef uint8_t *trigger       # by instrument: what its ticker subscription is triggered by
    cdef Written *written       # by instrument
    cdef dict requests          # request id -> {symbol: wire}

    def __cinit__(self, uint32_t row_max=1024):
        self.requests = {}
        self.trigger = <uint8_t *>calloc(row_max, 1)
        self.written = <Written *>calloc(row_max, sizeof(Written))
        if self.trigger == NULL or self.written == NULL:
            raise MemoryError("no memory for the tables by instrument")

    def __dealloc__(self):
        free(self.trigger)
        free(self.written)

    # -- data plane ------------------------------------------------------------------------------------------

    cdef int decode(self, const char *payload, size_t size, uint64_t ts_recv_ns,
                    fh_batch *batch) noexcept nogil:
        cdef uint32_t before = batch.event_count, ignored = batch.ignored, unlisted = batch.unlisted
        cdef int answer
        fh_batch_mark(batch)
        answer = self.frame(payload, size, batch)
        if answer < 0:
            fh_batch_rollback(batch)
            batch.ignored, batch.unlisted = ignored, unlisted
            return answer
        return <int>(batch.event_count - before)

    cdef int frame(self, const char *payload, size_t size, fh_batch *batch) noexcept nogil:
        """The envelope. `data` is decoded where it stands if channel and type came before it, else at the end."""
        cdef fh_json json, late
        cdef fh_key key
        cdef fh_text text, data
        cdef int channel = CHANNEL_NONE, type = TYPE_NONE, answer = FH_OK
        cdef bint has_data = False, has_late = False
        fh_json_open(&json, payload, size)
        fh_json_object(&json)
        while answer == FH_OK and fh_json_key(&json, &key):
            if fh_key_is(&key, b"channel"):
                if fh_json_string(&json, &text):
                    channel = channel_of(&text)
            elif fh_key_is(&key, b"type"):
                if fh_json_string(&json, &text):
                    type = type_of(&text)
            elif fh_key_is(&key, b"data"):
                if has_data:
                    return FH_ERROR_MALFORMED
                has_data = True
                if channel != CHANNEL_NONE and type != TYPE_NONE:
                    answer = self.data(&json, channel, type, batch)
                else:
                    has_late = fh_json_raw(&json, &data)
            else:
                if fh_key_is(&key, b"method") or fh_key_is(&key, b"error") or fh_key_is(&key, b"Error"):
                    channel = CHANNEL_CONTROL
                fh_json_skip(&json)
        if answer < 0:
            return answer
        answer = fh_json_close(&json)
        if answer < 0:
            return answer
        if has_late and CHANNEL_BOOK <= channel <= CHANNEL_OHLC:
            fh_json_open(&late, data.at, data.size)
            answer = self.data(&late, channel, type, batch)
            if answer == FH_OK:
                answer = fh_json_close(&late)
        return answer if answer < 0 else outcome(channel, type, has_data, batch)

    cdef int data(self, fh_json *json, int channel, int type, fh_batch *batch) noexcept nogil:
        """The array of elements. What is no market data is skipped here and named by outcome()."""
        cdef Element element
        cdef int answer = FH_OK
        cdef uint32_t begin
        cdef int i
        if not CHANNEL_BOOK <= channel <= CHANNEL_OHLC or type == TYPE_UNKNOWN or type == TYPE_NONE:
            fh_json_skip(json)
            return json.error
        fh_json_array(json)
        while answer == FH_OK and fh_json_element(json):
            memset(&element, 0, sizeof(element))
            for i in range(NUMBER_COUNT):
                element.number[i].digits = -1
            begin = batch.change_count
            answer = parse_element(json, &element, batch)
            if answer == FH_OK:
                answer = self.element(&element, channel, type, begin, batch)
        return answer if answer < 0 else json.error

    cdef int element(self, Element *element, int channel, int type, uint32_t begin, fh_batch *batch) noexcept nogil:
        """One element to its event. History at subscribe (trades, candles) is no event."""
        cdef uint32_t instrument
        if not element.has & HAS_SYMBOL:
            return FH_ERROR_MISSING
        if type == TYPE_SNAPSHOT and (channel == CHANNEL_TRADE or channel == CHANNEL_OHLC):
            batch.ignored += 1
            return FH_OK
        instrument = fh_symbols_get(self.symbols, element.symbol.at, element.symbol.size)
        if instrument == FH_INSTRUMENT_NONE:
            batch.change_count = begin
            batch.unlisted += 1
            batch.unlisted_symbol = element.symbol
            return FH_OK
        if channel == CHANNEL_BOOK:
            return self.book(element, type, begin, &self.rows[instrument], batch)
        if channel == CHANNEL_TRADE:
            return self.trade(element, &self.rows[instrument], batch)
        if channel == CHANNEL_OHLC:
            return self.candle(element, &self.rows[instrument], batch)
        if self.trigger[instrument] & TRIGGER_TRADES:
            return self.ticker(element, &self.rows[instrument], batch)
        return self.quote(element, &self.rows[instrument], batch)

    cdef fh_event *opened(self, Element *element, const fh_instrument *row, uint8_t kind, uint8_t channel,
                          fh_batch *batch) noexcept nogil:
        cdef fh_event *event = fh_batch_event(batch, kind)
        if event == NULL:
            return NULL
        event.instrument = row.id
        event.channel = channel
        event.ts_event_ns = element.ts_ns
        if element.ts_ns == 0:
            event.flags |= FH_TS_SUSPECT
        return event

    cdef int book(self, Element *element, int type, uint32_t begin, const fh_instrument *row,
                  fh_batch *batch) noexcept nogil:
        cdef fh_event *event
        if not element.has & (HAS_BIDS | HAS_ASKS):
            return FH_ERROR_MISSING
        event = self.opened(element, row, FH_LEVEL, FH_CHANNEL_BOOK, batch)
        if event == NULL:
            return FH_ERROR_FULL
        if type == TYPE_SNAPSHOT:
            event.flags |= FH_SNAPSHOT
        event.body.book.change_begin = begin
        event.body.book.change_count = batch.change_count - begin
        event.body.book.checksum = element.checksum
        event.body.book.has_checksum = 1 if element.has & HAS_CHECKSUM else 0
        if as_written(batch, event, row, &self.written[row.id]) < 0:
            return FH_ERROR_DIGITS
        return fh_batch_scale(batch, event, row)

    cdef int trade(self, Element *element, const fh_instrument *row, fh_batch *batch) noexcept nogil:
        cdef fh_event *event
        cdef int answer
        cdef int[2] needed = [PRICE, QTY]
        if not complete(element, needed, 2) or not element.has & HAS_ID or not element.has & HAS_SIDE:
            return FH_ERROR_MISSING
        event = self.opened(element, row, FH_TRADE, FH_CHANNEL_TRADE, batch)
        if event == NULL:
            return FH_ERROR_FULL
        event.sequence = element.trade_id
        event.body.word[2] = <int64_t>element.trade_id
        event.body.word[3] = element.side   # aggressor: the first byte; neither an aggregate nor a count
        answer = fh_batch_price(batch, event, row, &element.number[PRICE], &event.body.word[0])
        return answer if answer < 0 else fh_batch_size(batch, event, row, &element.number[QTY], &event.body.word[1])

    cdef int quote(self, Element *element, const fh_instrument *row, fh_batch *batch) noexcept nogil:
        cdef fh_event *event
        cdef int answer
        cdef int[4] needed = [BID, BID_QTY, ASK, ASK_QTY]
        if not complete(element, needed, 4):
            return FH_ERROR_MISSING
        event = self.opened(element, row, FH_QUOTE, FH_CHANNEL_QUOTE, batch)
        if event == NULL:
            return FH_ERROR_FULL
        answer = fh_batch_price(batch, event, row, &element.number[BID], &event.body.word[0])
        if answer == FH_OK:
            answer = fh_batch_size(batch, event, row, &element.number[BID_QTY], &event.body.word[1])
        if answer == FH_OK:
            answer = fh_batch_price(batch, event, row, &element.number[ASK], &event.body.word[2])
        if answer == FH_OK:
            answer = fh_batch_size(batch, event, row, &element.number[ASK_QTY], &event.body.word[3])
        return answer

    cdef int ticker(self, Element *element, const fh_instrument *row, fh_batch *batch) noexcept nogil:
        """last open high low | volume quote_volume average count. Kraken tells no open, quote volume and count."""
        cdef fh_event *event
        cdef int i
        cdef int[1] needed = [LAST]
        if not complete(element, needed, 1):
            return FH_ERROR_MISSING
        event = self.opened(element, row, FH_TICKER, FH_CHANNEL_TICKER, batch)
        if event == NULL:
            return FH_ERROR_FULL
        event.slot_count = 2
        if fh_batch_price(batch, event, row, &element.number[LAST], &event.body.word[0]) < 0:
            return FH_ERROR_DIGITS
        event.body.word[1] = rounded(event, &element.number[OPEN], row.price_exponent)
        event.body.word[2] = rounded(event, &element.number[HIGH], row.price_exponent)
        event.body.word[3] = rounded(event, &element.number[LOW], row.price_exponent)
        event.body.word[4] = rounded(event, &element.number[VOLUME], row.size_exponent)
        no_statistic(event, 5)
        statistic(event, 6, &element.number[VWAP])
        return FH_OK

    cdef int candle(self, Element *element, const fh_instrument *row, fh_batch *batch) noexcept nogil:
        """open high low close | volume quote_volume start_ns count:interval_s."""
        cdef fh_event *event
        cdef int i
        cdef int[4] places = [OPEN, HIGH, LOW, LAST]
        if not complete(element, places, 4) or element.begin_ns == 0:
            return FH_ERROR_MISSING
        if element.count >> 32 or element.interval > 21600:
            return FH_ERROR_RANGE
        event = self.opened(element, row, FH_CANDLE, FH_CHANNEL_CANDLE, batch)
        if event == NULL:
            return FH_ERROR_FULL
        event.slot_count = 2
        for i in range(4):
            if fh_batch_price(batch, event, row, &element.number[places[i]], &event.body.word[i]) < 0:
                return FH_ERROR_DIGITS
        event.body.word[4] = rounded(event, &element.number[VOLUME], row.size_exponent)
        no_statistic(event, 5)
        event.body.word[6] = <int64_t>element.begin_ns
        event.body.word[7] = <int64_t>(element.count | element.interval * 60 << 32)
        return FH_OK

    cdef int checksum(self, const fh_book *book, const fh_event *event,
                      const fh_instrument *row) noexcept nogil:
        if not event.body.book.has_checksum:
            return -1
        cdef const Written *written = &self.written[row.id]
        cdef int price_added = -row.price_exponent - written.price if written.known else 0
        cdef int size_added = -row.size_exponent - written.size if written.known else 0
        return fh_book_crc_kraken(book, max(price_added, 0), max(size_added, 0)) == event.body.book.checksum

    # -- control plane ---------------------------------------------------------------------------------------

    def stream(self, symbol, channel):
        if channel.name == "book":
            return self._book_stream(symbol, channel)
        if channel.name == "trade":
            params, deadline = {"channel": "trade", "snapshot": False, "symbol": symbol}, 0.0
        elif channel.name in ("quote", "ticker"):
            trigger = "bbo" if channel.name == "quote" else "trades"
            params, deadline = {"channel": "ticker", "event_trigger": trigger, "symbol": symbol}, FIRST_DATA_S
        elif channel.name == "candle":
            if channel.speed not in INTERVALS:
                raise VenueError(f"kraken has no candles of {channel.speed!r}; use one of {', '.join(INTERVALS)}, as in candle@1m")
            params, deadline = {"channel": "ohlc", "interval": INTERVALS[channel.speed], "symbol": symbol}, 0.0
        else:
            raise VenueError(f"kraken has no {channel.name} channel; use book, trade, quote, ticker or candle@1m")
        if channel.depth or (channel.speed and channel.name != "candle"):
            raise VenueError(f"kraken's {channel.name} channel has neither depth nor speed: ask for {channel.name}")
        return Stream("spot.v2", wire(params), symbol, channel.name, first_data_s=deadline)

    def _book_stream(self, symbol, channel):
        depth = channel.depth or max(DEPTHS)
        if depth not in DEPTHS or channel.speed:
            raise VenueError(f"kraken has books of depth {', '.join(map(str, DEPTHS))} at one speed, not "
                             f"book{channel.depth or ''}{'@' + channel.speed if channel.speed else ''}")
        params = {"channel": "book", "depth": depth, "symbol": symbol}
        return Stream("spot.v2", wire(params), symbol, "book", depth=depth, snapshot="in_band", first_data_s=FIRST_DATA_S)

    def subscribe(self, endpoint, streams, request_id):
        for stream in streams:
            self._trigger(json.loads(stream.wire))
        return self._requests("subscribe", streams, request_id)

    def unsubscribe(self, endpoint, streams, request_id):
        return self._requests("unsubscribe", streams, request_id)

    def _requests(self, method, streams, request_id):
        """One message for all symbols of the same channel and parameters, in the order they came."""
        groups = {}
        for stream in streams:
            params = json.loads(stream.wire)
            symbol = params.pop("symbol")
            groups.setdefault(json.dumps(params, sort_keys=True), []).append((symbol, stream))
        messages = []
        for params, members in groups.items():
            for begin in range(0, len(members), SYMBOLS_PER_REQUEST):
                part = members[begin:begin + SYMBOLS_PER_REQUEST]
                self._remember(request_id, {symbol: stream.wire for symbol, stream in part})
                text = json.dumps({"method": method, "params": json.loads(params) | {"symbol": [symbol for symbol, _ in part]},
                                   "req_id": request_id}, separators=(",", ":"))
                messages.append((request_id, text, [stream for _, stream in part]))
                request_id += 1
        return messages

    def _remember(self, request_id, wires):
        self.requests[request_id] = wires
        while len(self.requests) > REQUESTS_KEPT:
            del self.requests[next(iter(self.requests))]

    def _trigger(self, params):
        """A ticker subscription decides whether its messages are quotes or tickers."""
        if params.get("channel") != "ticker":
            return
        symbol = params.get("symbol", "").encode()
        cdef uint32_t instrument = fh_symbols_get(self.symbols, symbol, len(symbol))
        if instrument != FH_INSTRUMENT_NONE:
            self.trigger[instrument] = TRIGGER_BBO if params.get("event_trigger") == "bbo" else TRIGGER_TRADES

    def ping(self, endpoint, request_id):
        return json.dumps({"method": "ping", "req_id": request_id}, separators=(",", ":"))

    def control(self, payload):
        try:
            message = json.loads(payload)
        except ValueError as error:
            return [Complaint("malformed", f"control message is no JSON: {error}")]
        if not isinstance(message, dict):
            return [Complaint("malformed", f"control message is no object: {payload[:80]!r}")]
        if message.get("channel") == "status":
            return self._status(message)
        if message.get("channel") == "heartbeat" or message.get("method") == "pong":
            return [Alive()]
        if message.get("method") in ("subscribe", "unsubscribe"):
            return [self._answer(message)]
        text = str(message.get("error") or message.get("Error") or message)
        return [Complaint("rate" if "rate" in text else "error", text)]

    def _status(self, message):
        found = [Alive()]
        for status in message.get("data") or []:
            system = status.get("system", "")
            if system == "maintenance":
                found.append(Closing("the venue goes into maintenance"))
            elif system != "online":
                found.append(Complaint("status", f"the venue is {system}"))
        return found

    def _answer(self, message):
        """An answer to subscribe or unsubscribe. A refusal names its symbol, in a field or in its text, or nobody."""
        request_id = message.get("req_id") or 0
        if message.get("success"):
            params = message.get("result") or {}
            if message["method"] == "subscribe":
                self._trigger(params)
            return Ack(request_id, wire(params))
        reason = str(message.get("error", "refused without a reason"))
        wires = self.requests.get(request_id, {})
        for symbol in sorted(wires, key=len, reverse=True):
            if message.get("symbol") == symbol or ("symbol" not in message and symbol in reason):
                return Ack(request_id, wires[symbol], False, reason)
        if len(wires) > 1:
            return Complaint("subscribe", reason)
        return Ack(request_id, "".join(wires.values()), False, reason)

    def instrument_requests(self):
        return [RestRequest("/0/public/AssetPairs")]

    def instruments(self, bodies):
        """Of AssetPairs answers, or of snapshots of the `instrument` channel, which has v2's own names."""
        found = []
        for body in bodies:
            message = json.loads(body, parse_float=decimal.Decimal)
            if message.get("error"):
                raise VenueError(f"kraken refused the instrument list: {', '.join(map(str, message['error']))}")
            if message.get("channel") == "instrument":
                found += [_pair(pair) for pair in message["data"]["pairs"]]
            else:
                found += [_asset_pair(pair) for pair in message["result"].values() if "wsname" in pair]
        return found


cdef int outcome(int channel, int type, bint has_data, fh_batch *batch) noexcept nogil:
    """What a well-formed frame was, once it is read: nothing falls through unnamed."""
    if channel == CHANNEL_CONTROL:
        batch.control = 1
        return FH_OK
    if channel == CHANNEL_NAMED:
        batch.ignored += 1
        return FH_OK
    if channel == CHANNEL_NONE or channel == CHANNEL_UNKNOWN or type == TYPE_UNKNOWN:
        return FH_ERROR_UNKNOWN
    return FH_OK if has_data and type != TYPE_NONE else FH_ERROR_MISSING


def wire(params):
    """Canonical text of a subscription: the parameters that tell streams apart, keys in order."""
    kept = {"channel": params.get("channel"), "symbol": params.get("symbol")}
    if kept["channel"] == "book":
        kept["depth"] = params.get("depth", DEPTHS[0])
    elif kept["channel"] == "ticker":
        kept["event_trigger"] = params.get("event_trigger", "trades")
    elif kept["channel"] == "ohlc":
        kept["interval"] = params.get("interval", 1)
    elif kept["channel"] == "trade":
        kept["snapshot"] = params.get("snapshot", False)
    return json.dumps(kept, separators=(",", ":"), sort_keys=True)


def _asset_pair(pair):
    """One pair of AssetPairs: digits as the feed writes them, so that tick and lot keep their trailing zeros."""
    base, _, quote = pair["wsname"].partition("/")
    base, quote = ASSETS.get(base, base), ASSETS.get(quote, quote)
    price_digits, size_digits = int(pair["pair_decimals"]), int(pair["lot_decimals"])
    tick = decimal.Decimal(pair["tick_size"]) if pair.get("tick_size") else decimal.Decimal(1).scaleb(-price_digits)
    return Instrument(f"{base}/{quote}", f"{base}-{quote}", "spot", f"{tick:.{price_digits}f}",
                      f"{decimal.Decimal(1).scaleb(-size_digits):.{size_digits}f}",
                      listed=pair.get("status", "online") in ("online", "limit_only", "post_only"))


def _pair(pair):
    """One pair of the `instrument` channel."""
    tick, lot = decimal.Decimal(pair["price_increment"]), decimal.Decimal(pair["qty_increment"])
    return Instrument(pair["symbol"], pair["symbol"].replace("/", "-"), "spot", f"{tick:.{int(pair['price_precision'])}f}",
                      f"{lot:.{int(pair['qty_precision'])}f}",
                      listed=pair.get("status", "online") in ("online", "limit_only", "post_only"))


VENUE = Kraken
