# cython: language_level=3
"""What Binance's spot, USD-M and COIN-M endpoints have in common: message shapes, continuity rules, control frames.

A name that starts with _ is no venue: binance_spot, binance_usdm and binance_coinm call the functions here.

Decoding takes two steps, so that no order of keys matters. First every member of the message is noted in a slot
by its one-letter key (levels of a book go straight into the batch); then "e", or the set of keys where a message
has no "e", says what it is, and the numbers it needs are read from their slots.

Event time, per kind (ms; 0 with FH_TS_SUSPECT where the message should have one and it is absent or absurd):

    trade, aggTrade             T   matching engine
    depthUpdate, bookTicker     T   futures; E (sending host) for spot depth; spot bookTicker has no time: 0
    depth5/10/20 of spot        none: 0
    forceOrder                  o.T
    kline, tickers, mark price  E   ("T" is the next funding time in a mark price)

Continuity: the event's sequence is u for books and quotes, t for trades, a for aggregate trades.
"""
import datetime
import decimal
import json
import urllib.parse

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memchr, memcmp, memcpy
from feedhandler._cext cimport *
from feedhandler.venue cimport no_statistic, statistic
from feedhandler.venue import Ack, Alive, Closing, Complaint, Instrument, RestRequest, Stream, VenueError

cdef enum:
    SLOT_MAX = 58         # 'A' to 'z'; the six places between 'Z' and 'a' are free for words:
    SLOT_PU = 26
    SLOT_ST = 27
    SLOT_LAST_UPDATE_ID = 28
    SYMBOL_SIZE_MAX = 48  # as fh_symbols.h
    TIME_MS_MAX_HIGH = 1689  # the year 2200 in ms, shifted down by 32 bits

# One noted value. type is the first byte of the value, or '0' for a number, bare or quoted, that is noted as one, or
# '1' for 13 bare digits (a time, a futures id): read when asked for.
# An int, not a char: the compiler must see that writing it leaves the cursor alone.
cdef struct Slot:
    fh_text text       # of a string without its quotes; of an object or array the whole
    fh_decimal number  # type '0'
    int type

# One message while it is read.
cdef struct Message:
    const fh_symbols *symbols
    const fh_instrument *rows
    fh_batch *batch
    int family
    uint64_t seen         # bit n: slot n is filled
    uint32_t change_begin # where this message's levels start in the batch
    uint8_t sides         # FH_BID, FH_ASK: that array of levels came
    bint asks_later       # the asks came first: their text waits in `asks`, so that bids stand before asks
    bint wrapped          # inside {"stream":…,"data":…}
    bint is_list          # data was an array: its events are in the batch
    bint is_control       # a key of an answer was there: result, error, code, msg, id
    fh_text asks
    fh_text stream
    Slot slot[SLOT_MAX]


# -- step 1: note the members --------------------------------------------------------------------------------------

cdef inline uint64_t bit(int letter) noexcept nogil:
    return <uint64_t>1 << (letter - c'A')


cdef inline Slot *slot_of(Message *message, int letter) noexcept nogil:
    return &message.slot[letter - c'A']


cdef inline void message_clear(Message *message) noexcept nogil:
    message.seen = 0
    message.sides = FH_SIDE_NONE
    message.asks_later = False
    message.change_begin = message.batch.change_count


cdef void note_levels(Message *message, fh_json *cursor, uint8_t side) noexcept nogil:
    """An array of levels. A side that comes twice is malformed."""
    if message.sides & side:
        fh_json_fail(cursor, FH_ERROR_MALFORMED)
        return
    if side == FH_ASK and not message.sides & FH_BID:
        message.asks_later = True
        fh_json_raw(cursor, &message.asks)
    else:
        fh_batch_levels(message.batch, cursor, side, 0, 0)
    message.sides |= side


cdef inline bint is_13_digits(const fh_json *cursor) noexcept nogil:
    """Whether a number of 13 digits is all there is before the next comma or bracket. Its size being known, what
    follows need not wait for a look at where it ends."""
    cdef char behind = cursor.at[13]
    return fh_scan_is_13_digits(cursor.at) and (behind == c',' or behind == c'}') and cursor.at + 13 < cursor.end


cdef inline void note(Message *message, fh_json *cursor, int index) noexcept nogil:
    """Any value into its slot. A key that comes twice is malformed."""
    cdef Slot *slot = &message.slot[index]
    cdef char first = cursor.at[0]
    if message.seen & (<uint64_t>1 << index):
        fh_json_fail(cursor, FH_ERROR_MALFORMED)
        return
    message.seen |= <uint64_t>1 << index
    if first == c'"':   # of another frame, if ours is cut off here: both calls know where it ends
        if index != c's' - c'A' and fh_json_quoted_usual(cursor, &slot.number):
            slot.type = c'0'
        else:
            slot.type = c'"'
            fh_json_string(cursor, &slot.text)
        return
    if c'1' <= first <= c'9' and is_13_digits(cursor):
        slot.type = c'1'
        slot.text.at = cursor.at
        cursor.at += 13
        return
    first = fh_json_peek(cursor)
    slot.type = first
    if first == c'"':
        fh_json_string(cursor, &slot.text)
    elif first == c'-' or (c'0' <= first <= c'9'):
        slot.type = c'0'
        fh_json_decimal(cursor, &slot.number)
    else:
        fh_json_raw(cursor, &slot.text)


cdef inline void note_letter(Message *message, fh_json *cursor, char letter) noexcept nogil:
    if (letter == c'b' or letter == c'a') and fh_json_peek(cursor) == c'[':
        note_levels(message, cursor, FH_BID if letter == c'b' else FH_ASK)
    elif (c'A' <= letter <= c'Z') or (c'a' <= letter <= c'z'):
        note(message, cursor, letter - c'A')
    else:
        fh_json_skip(cursor)


cdef void note_word(Message *message, fh_json *cursor, const fh_key *key) noexcept nogil:
    """A member whose key is longer than a letter."""
    if fh_key_is(key, b"pu"):
        note(message, cursor, SLOT_PU)
    elif fh_key_is(key, b"st"):
        note(message, cursor, SLOT_ST)
    elif fh_key_is(key, b"lastUpdateId"):
        note(message, cursor, SLOT_LAST_UPDATE_ID)
    elif fh_key_is(key, b"bids") and fh_json_peek(cursor) == c'[':
        note_levels(message, cursor, FH_BID)
    elif fh_key_is(key, b"asks") and fh_json_peek(cursor) == c'[':
        note_levels(message, cursor, FH_ASK)
    else:
        if (fh_key_is(key, b"result") or fh_key_is(key, b"error") or fh_key_is(key, b"code")
                or fh_key_is(key, b"msg") or fh_key_is(key, b"id")):
            message.is_control = True
        fh_json_skip(cursor)


cdef void note_object(Message *message, fh_json *cursor) noexcept nogil:
    """The members of one event."""
    cdef fh_key key
    message_clear(message)
    fh_json_object(cursor)
    while fh_json_key(cursor, &key):
        if key.size == 1:
            note_letter(message, cursor, key.at[0])
        else:
            note_word(message, cursor, &key)


cdef int note_data(Message *message, fh_json *cursor) noexcept nogil:
    """The value of "data": what was noted of the wrapper's own members before it is forgotten."""
    if message.wrapped:
        fh_json_fail(cursor, FH_ERROR_MALFORMED)
        return FH_ERROR_MALFORMED
    message.wrapped = True
    message.is_control = False
    message.batch.change_count = message.change_begin
    message_clear(message)
    if fh_json_peek(cursor) == c'[':
        message.is_list = True
        return decode_list(message, cursor)
    if fh_json_peek(cursor) == c'{':
        note_object(message, cursor)
    else:
        fh_json_skip(cursor)
    return FH_OK


cdef int note_frame(Message *message, fh_json *cursor) noexcept nogil:
    """A frame that is an object: an event, or the wrapper around one or a list of them."""
    cdef fh_key key
    cdef int error = FH_OK
    message_clear(message)
    fh_json_object(cursor)
    while error == FH_OK and fh_json_key(cursor, &key):
        if fh_key_is(&key, b"data"):
            error = note_data(message, cursor)
        elif fh_key_is(&key, b"stream"):
            if message.stream.at != NULL:
                fh_json_fail(cursor, FH_ERROR_MALFORMED)
            fh_json_string(cursor, &message.stream)
        elif message.wrapped:
            fh_json_skip(cursor)
        elif key.size == 1:
            note_letter(message, cursor, key.at[0])
        else:
            note_word(message, cursor, &key)
    return error


# -- reading a slot ------------------------------------------------------------------------------------------------

cdef inline bint has(const Message *message, uint64_t letters) noexcept nogil:
    return (message.seen & letters) == letters


cdef inline bint is_text(Message *message, int letter, const char *literal) noexcept nogil:
    return slot_of(message, letter).type == c'"' and fh_key_is(&slot_of(message, letter).text, literal)


cdef int slot_parse(Slot *slot) noexcept nogil:
    """A quoted number of unusual shape: an exponent, a sign, more than 15 digits."""
    if slot.type == c'1':
        slot.number.mantissa = <int64_t>fh_scan_digits16(slot.text.at, 13)
        slot.number.digits = 0
        slot.number.flags = 0
        slot.type = c'0'
        return FH_OK
    if slot.type != c'"' or slot.text.escaped or fh_decimal_parse(slot.text.at, slot.text.size, &slot.number) != FH_OK:
        return FH_ERROR_MALFORMED
    slot.type = c'0'
    return FH_OK


cdef inline int slot_settle(Slot *slot) noexcept nogil:
    """FH_OK if the slot holds a number, now in slot.number."""
    return FH_OK if slot.type == c'0' else slot_parse(slot)


cdef inline int slot_uint(Slot *slot, uint64_t *value) noexcept nogil:
    cdef int error
    if slot.type == c'1':
        value[0] = fh_scan_digits16(slot.text.at, 13)
        return FH_OK
    error = slot_settle(slot)
    if error != FH_OK:
        return error
    if slot.number.flags != 0 or slot.number.digits != 0 or slot.number.mantissa < 0:
        return FH_ERROR_RANGE
    value[0] = <uint64_t>slot.number.mantissa
    return FH_OK


cdef inline int slot_bool(const Slot *slot, bint *value) noexcept nogil:
    value[0] = slot.type == c't'
    return FH_OK if value[0] or slot.type == c'f' else FH_ERROR_MALFORMED


cdef inline int price_word(Message *message, fh_event *event, int letter, int word) noexcept nogil:
    """The price under a letter, at the instrument's exponent, into a word of the event's body."""
    cdef Slot *slot = slot_of(message, letter)
    cdef int error = slot_settle(slot)
    if error != FH_OK:
        return error
    return fh_batch_price(message.batch, event, &message.rows[event.instrument], &slot.number, &event.body.word[word])


cdef inline int size_word(Message *message, fh_event *event, int letter, int word) noexcept nogil:
    cdef Slot *slot = slot_of(message, letter)
    cdef int error = slot_settle(slot)
    if error != FH_OK:
        return error
    return fh_batch_size(message.batch, event, &message.rows[event.instrument], &slot.number, &event.body.word[word])


cdef inline int real_word(Message *message, fh_event *event, int letter, int word) noexcept nogil:
    """A turnover or average, as a double."""
    cdef Slot *slot = slot_of(message, letter)
    cdef int error = slot_settle(slot)
    if error == FH_OK:
        statistic(event, word, &slot.number)
    return error


cdef inline int time_ns(Slot *slot, uint64_t *ns) noexcept nogil:
    """Milliseconds to ns; 0 where they are 0 or beyond the year 2199."""
    cdef uint64_t ms = 0
    cdef int error = slot_uint(slot, &ms)
    ns[0] = ms * 1000000 if ms >> 32 <= TIME_MS_MAX_HIGH else 0
    return error


cdef inline int set_time(Message *message, fh_event *event, bint matching) noexcept nogil:
    """Event time: T where it is the matching time, else E."""
    cdef int error = FH_OK
    if matching and message.seen & bit(c'T'):
        error = time_ns(slot_of(message, c'T'), &event.ts_event_ns)
    elif message.seen & bit(c'E'):
        error = time_ns(slot_of(message, c'E'), &event.ts_event_ns)
    if event.ts_event_ns == 0:
        event.flags |= FH_TS_SUSPECT
    return error


cdef bint is_foreign(Message *message) noexcept nogil:
    """Whether "st" says that the event is of the other futures family: all-market lists carry both."""
    cdef uint64_t family = 0
    if message.family == BINANCE_SPOT or not message.seen & (<uint64_t>1 << SLOT_ST):
        return False
    return slot_uint(&message.slot[SLOT_ST], &family) == FH_OK and family != <uint64_t>message.family


# -- step 2: make the events ---------------------------------------------------------------------------------------

cdef inline uint32_t find(Message *message, const char *symbol, size_t size) noexcept nogil:
    """The instrument of a symbol; one that is not in the table is counted."""
    cdef uint32_t instrument = fh_symbols_get(message.symbols, symbol, size)
    if instrument == FH_INSTRUMENT_NONE:
        message.batch.unlisted += 1
        message.batch.unlisted_symbol.at = symbol
        message.batch.unlisted_symbol.size = size
        message.batch.change_count = message.change_begin
    return instrument


cdef inline uint32_t find_s(Message *message) noexcept nogil:
    cdef Slot *slot = slot_of(message, c's')
    if slot.type != c'"':
        return find(message, NULL, 0)
    return find(message, slot.text.at, slot.text.size)


cdef inline fh_event *append(Message *message, uint8_t kind, uint8_t channel, uint32_t instrument) noexcept nogil:
    cdef fh_event *event = fh_batch_event(message.batch, kind)
    if event != NULL:
        event.channel = channel
        event.instrument = instrument
    return event


cdef int emit_trade(Message *message, bint aggregate) noexcept nogil:
    """trade and aggTrade. Futures send frames that are no trade: X other than MARKET, and spent ids at price 0."""
    cdef uint64_t needed = bit(c's') | bit(c'p') | bit(c'q') | bit(c'm')
    cdef uint64_t first = 0, last = 0, trade_id = 0
    cdef bint buyer_is_maker = False
    needed |= (bit(c'a') | bit(c'f') | bit(c'l')) if aggregate else bit(c't')
    if not has(message, needed):
        return FH_ERROR_MISSING
    cdef uint32_t instrument = find_s(message)
    if instrument == FH_INSTRUMENT_NONE:
        return FH_OK
    cdef fh_event *event = append(message, FH_TRADE, FH_CHANNEL_AGG_TRADE if aggregate else FH_CHANNEL_TRADE, instrument)
    if event == NULL:
        return FH_ERROR_FULL
    cdef int error = (price_word(message, event, c'p', 0) or size_word(message, event, c'q', 1)
                      or slot_uint(slot_of(message, c'a' if aggregate else c't'), &trade_id)
                      or slot_bool(slot_of(message, c'm'), &buyer_is_maker) or set_time(message, event, True))
    if error == FH_OK and aggregate:
        error = slot_uint(slot_of(message, c'f'), &first) or slot_uint(slot_of(message, c'l'), &last)
        if error == FH_OK and (first > last or (last - first + 1) >> 32 != 0):
            error = FH_ERROR_RANGE
    if error != FH_OK:
        return error
    if event.body.word[0] == 0 or (message.seen & bit(c'X') and not is_text(message, c'X', b"MARKET")):
        message.batch.event_count -= 1
        message.batch.ignored += 1
        return FH_OK
    event.sequence = trade_id
    event.body.word[2] = <int64_t>trade_id
    # The trade's last word: aggressor, aggregate (a byte each), two bytes of nothing, count.
    event.body.word[3] = <int64_t>((FH_ASK if buyer_is_maker else FH_BID) | <uint64_t>aggregate << 8
                                   | (last - first + 1) << 32)
    return FH_OK


cdef int emit_quote(Message *message) noexcept nogil:
    """bookTicker. Futures carry times; spot has none, and that is no fault. A price of 0 is an empty side."""
    if not has(message, bit(c's') | bit(c'u') | bit(c'b') | bit(c'B') | bit(c'a') | bit(c'A')):
        return FH_ERROR_MISSING
    cdef uint32_t instrument = find_s(message)
    if instrument == FH_INSTRUMENT_NONE:
        return FH_OK
    cdef fh_event *event = append(message, FH_QUOTE, FH_CHANNEL_QUOTE, instrument)
    if event == NULL:
        return FH_ERROR_FULL
    cdef int error = (price_word(message, event, c'b', 0) or size_word(message, event, c'B', 1)
                      or price_word(message, event, c'a', 2) or size_word(message, event, c'A', 3)
                      or slot_uint(slot_of(message, c'u'), &event.sequence))
    if error == FH_OK and message.family != BINANCE_SPOT:
        error = set_time(message, event, True)
    if event.body.word[0] == 0:
        event.body.word[0] = FH_UNDEFINED
    if event.body.word[2] == 0:
        event.body.word[2] = FH_UNDEFINED
    return error


cdef bint is_window(const fh_text *stream) noexcept nogil:
    """Whether a stream's name says partial depth: "…@depth20…", where "…@depth" and "…@depth@100ms" are changes."""
    cdef const char *at = <const char *>memchr(stream.at, c'@', stream.size) if stream.at != NULL else NULL
    if at == NULL or <size_t>(stream.at + stream.size - at) < 7 or memcmp(at, b"@depth", 6) != 0:
        return False
    return c'0' <= at[6] <= c'9'


cdef int read_asks_later(Message *message) noexcept nogil:
    cdef fh_json cursor
    if not message.asks_later:
        return FH_OK
    fh_json_open(&cursor, message.asks.at, message.asks.size)
    fh_batch_levels(message.batch, &cursor, FH_ASK, 0, 0)
    return fh_json_close(&cursor)


cdef int emit_levels(Message *message, uint32_t instrument, uint8_t flags, fh_event **out) noexcept nogil:
    """A book event of the levels noted, scaled, but for its sequence numbers and time."""
    cdef int error = read_asks_later(message)
    if error != FH_OK:
        return error
    cdef fh_event *event = append(message, FH_LEVEL, FH_CHANNEL_BOOK, instrument)
    if event == NULL:
        return FH_ERROR_FULL
    event.flags |= flags
    event.body.book.change_begin = message.change_begin
    event.body.book.change_count = message.batch.change_count - message.change_begin
    out[0] = event
    return fh_batch_scale(message.batch, event, &message.rows[instrument])


cdef int emit_depth(Message *message) noexcept nogil:
    """depthUpdate: changes, or the partial depth of futures, which differs in the stream's name alone."""
    cdef uint64_t needed = bit(c's') | bit(c'U') | bit(c'u')
    cdef uint64_t first = 0, last = 0, prev = 0
    cdef fh_event *event = NULL
    if message.family != BINANCE_SPOT:
        needed |= <uint64_t>1 << SLOT_PU
    if not has(message, needed) or message.sides != (FH_BID | FH_ASK):
        return FH_ERROR_MISSING
    cdef uint32_t instrument = find_s(message)
    if instrument == FH_INSTRUMENT_NONE:
        return FH_OK
    cdef int error = slot_uint(slot_of(message, c'U'), &first) or slot_uint(slot_of(message, c'u'), &last)
    if error == FH_OK and message.seen & (<uint64_t>1 << SLOT_PU):
        error = slot_uint(&message.slot[SLOT_PU], &prev)
    if error == FH_OK and first > last:
        error = FH_ERROR_RANGE
    cdef bint window = is_window(&message.stream)
    if error == FH_OK:
        error = emit_levels(message, instrument, FH_SNAPSHOT if window else 0, &event)
    if error != FH_OK:
        return error
    event.sequence = event.body.book.last = last
    event.body.book.first = first
    event.body.book.prev = prev
    event.body.book.has_first = 1
    event.body.book.has_prev = message.seen >> SLOT_PU & 1
    event.body.book.window = window
    return set_time(message, event, message.family != BINANCE_SPOT)


cdef int emit_window(Message *message) noexcept nogil:
    """Partial depth of spot: no type, no time, and the symbol, in small letters, in the stream's name alone."""
    cdef char symbol[SYMBOL_SIZE_MAX]
    cdef size_t size, index
    cdef fh_event *event = NULL
    cdef uint64_t last = 0
    if not is_window(&message.stream):
        return FH_ERROR_UNKNOWN
    if message.sides != (FH_BID | FH_ASK):
        return FH_ERROR_MISSING
    size = <const char *>memchr(message.stream.at, c'@', message.stream.size) - message.stream.at
    for index in range(size if size <= SYMBOL_SIZE_MAX else 0):
        symbol[index] = message.stream.at[index]
        if c'a' <= symbol[index] <= c'z':
            symbol[index] -= 32
    cdef uint32_t instrument = find(message, symbol, size)
    if instrument == FH_INSTRUMENT_NONE:
        message.batch.unlisted_symbol.at = message.stream.at  # the frame outlives our upper-case copy
        return FH_OK
    cdef int error = slot_uint(&message.slot[SLOT_LAST_UPDATE_ID], &last)
    if error == FH_OK:
        error = emit_levels(message, instrument, FH_SNAPSHOT, &event)
    if error == FH_OK:
        event.sequence = event.body.book.last = last
        event.body.book.window = 1
    return error


cdef int note_inner(Message *message, int letter, Message *inner) noexcept nogil:
    """The members of the object under a letter, into a Message of their own."""
    cdef fh_json cursor
    cdef Slot *slot = slot_of(message, letter)
    if not message.seen & bit(letter):
        return FH_ERROR_MISSING
    if slot.type != c'{':
        return FH_ERROR_MALFORMED
    inner.symbols = message.symbols
    inner.rows = message.rows
    inner.batch = message.batch
    inner.family = message.family
    inner.is_control = False
    fh_json_open(&cursor, slot.text.at, slot.text.size)
    note_object(inner, &cursor)
    message.batch.change_count = message.change_begin
    return fh_json_close(&cursor)


cdef uint64_t interval_s(const Slot *slot) noexcept nogil:
    """Seconds of "1s", "15m", "4h", "3d", "1w", "1M" (30 days); 0: not such a text."""
    cdef uint64_t count = 0
    cdef size_t index
    cdef char unit
    if slot.type != c'"' or slot.text.size < 2 or slot.text.size > 3:
        return 0
    for index in range(slot.text.size - 1):
        if not c'0' <= slot.text.at[index] <= c'9':
            return 0
        count = count * 10 + (slot.text.at[index] - c'0')
    unit = slot.text.at[slot.text.size - 1]
    if unit == c's':
        return count
    if unit == c'm':
        return count * 60
    if unit == c'h':
        return count * 3600
    return count * 86400 * (1 if unit == c'd' else 7 if unit == c'w' else 30 if unit == c'M' else 0)


cdef int emit_candle(Message *message) noexcept nogil:
    """kline. COIN-M's q is a turnover in the base coin: quote_volume is the venue's q, whatever it counts."""
    cdef Message inner
    cdef uint64_t start_ns = 0, count = 0, seconds
    cdef bint closed = False
    cdef int error = note_inner(message, c'k', &inner)
    if error != FH_OK:
        return error
    if not has(message, bit(c's')) or not has(&inner, bit(c't') | bit(c'i') | bit(c'o') | bit(c'h') | bit(c'l')
                                              | bit(c'c') | bit(c'v') | bit(c'q') | bit(c'n')):
        return FH_ERROR_MISSING
    cdef uint32_t instrument = find_s(message)
    if instrument == FH_INSTRUMENT_NONE:
        return FH_OK
    cdef fh_event *event = append(message, FH_CANDLE, FH_CHANNEL_CANDLE, instrument)
    if event == NULL:
        return FH_ERROR_FULL
    event.slot_count = 2
    error = (price_word(&inner, event, c'o', 0) or price_word(&inner, event, c'h', 1)
             or price_word(&inner, event, c'l', 2) or price_word(&inner, event, c'c', 3)
             or size_word(&inner, event, c'v', 4) or real_word(&inner, event, c'q', 5)
             or time_ns(slot_of(&inner, c't'), &start_ns) or slot_uint(slot_of(&inner, c'n'), &count)
             or set_time(message, event, False))
    if error == FH_OK and inner.seen & bit(c'x'):
        error = slot_bool(slot_of(&inner, c'x'), &closed)
    seconds = interval_s(slot_of(&inner, c'i'))
    if error == FH_OK and (seconds == 0 or count >> 32 != 0 or start_ns == 0):
        return FH_ERROR_RANGE
    event.body.word[6] = <int64_t>start_ns
    event.body.word[7] = <int64_t>((seconds | (FH_CANDLE_CLOSED if closed else <uint64_t>0)) << 32 | count)
    return error


cdef int emit_ticker(Message *message, bint full) noexcept nogil:
    """24hrTicker, and 24hrMiniTicker, which has neither weighted average nor count."""
    cdef uint64_t count = 0
    if not has(message, bit(c's') | bit(c'c') | bit(c'o') | bit(c'h') | bit(c'l') | bit(c'v') | bit(c'q')):
        return FH_ERROR_MISSING
    if full and not has(message, bit(c'w') | bit(c'n')):
        return FH_ERROR_MISSING
    cdef uint32_t instrument = find_s(message)
    if instrument == FH_INSTRUMENT_NONE:
        return FH_OK
    cdef fh_event *event = append(message, FH_TICKER, FH_CHANNEL_TICKER, instrument)
    if event == NULL:
        return FH_ERROR_FULL
    event.slot_count = 2
    event.body.word[7] = FH_UNDEFINED
    no_statistic(event, 6)
    cdef int error = (price_word(message, event, c'c', 0) or price_word(message, event, c'o', 1)
                      or price_word(message, event, c'h', 2) or price_word(message, event, c'l', 3)
                      or size_word(message, event, c'v', 4) or real_word(message, event, c'q', 5)
                      or set_time(message, event, False))
    if error == FH_OK and full:
        error = real_word(message, event, c'w', 6) or slot_uint(slot_of(message, c'n'), &count)
        event.body.word[7] = <int64_t>count
    return error


cdef inline bint is_filled(Message *message, int letter) noexcept nogil:
    """Whether a value is there at all: a delivery contract has "" for its funding rate."""
    cdef Slot *slot = slot_of(message, letter)
    return has(message, bit(letter)) and slot.type != c'n' and not (slot.type == c'"' and slot.text.size == 0)


cdef int emit_price(Message *message, uint32_t instrument, uint8_t kind, uint8_t channel, int letter) noexcept nogil:
    """MARK or INDEX."""
    cdef fh_event *event = append(message, kind, channel, instrument)
    if event == NULL:
        return FH_ERROR_FULL
    return price_word(message, event, letter, 0) or set_time(message, event, False)


cdef int emit_funding(Message *message, uint32_t instrument) noexcept nogil:
    cdef Slot *rate = slot_of(message, c'r')
    cdef uint16_t flags = 0
    cdef fh_event *event = append(message, FH_FUNDING, FH_CHANNEL_FUNDING, instrument)
    if event == NULL:
        return FH_ERROR_FULL
    cdef uint64_t next_ns = 0
    cdef int error = (slot_settle(rate) or time_ns(slot_of(message, c'T'), &next_ns)
                      or set_time(message, event, False))
    if error != FH_OK:
        return error
    event.body.word[0] = fh_decimal_rescale(&rate.number, 12, &flags)
    event.body.word[1] = FH_UNDEFINED  # predicted
    event.body.word[2] = <int64_t>next_ns
    event.flags |= <uint8_t>flags
    return FH_OK


cdef int emit_mark(Message *message) noexcept nogil:
    """markPriceUpdate: up to three events. Index and funding are left out where the contract has none."""
    if not has(message, bit(c's') | bit(c'p') | bit(c'E')):
        return FH_ERROR_MISSING
    cdef uint32_t instrument = find_s(message)
    if instrument == FH_INSTRUMENT_NONE:
        return FH_OK
    cdef int error = emit_price(message, instrument, FH_MARK, FH_CHANNEL_MARK, c'p')
    if error == FH_OK and is_filled(message, c'i'):
        error = emit_price(message, instrument, FH_INDEX, FH_CHANNEL_INDEX, c'i')
    if error == FH_OK and is_filled(message, c'r'):
        error = emit_funding(message, instrument) if has(message, bit(c'T')) else FH_ERROR_MISSING
    return error


cdef int emit_liquidation(Message *message) noexcept nogil:
    """forceOrder: the order's own price and size (p, q), not what it has filled so far. It has no id."""
    cdef Message inner
    cdef int error = note_inner(message, c'o', &inner)
    if error != FH_OK:
        return error
    if not has(&inner, bit(c's') | bit(c'S') | bit(c'p') | bit(c'q') | bit(c'T')):
        return FH_ERROR_MISSING
    if is_foreign(&inner):
        message.batch.ignored += 1
        return FH_OK
    cdef uint32_t instrument = find_s(&inner)
    if instrument == FH_INSTRUMENT_NONE:
        return FH_OK
    cdef fh_event *event = append(message, FH_LIQUIDATION, FH_CHANNEL_LIQUIDATION, instrument)
    if event == NULL:
        return FH_ERROR_FULL
    if is_text(&inner, c'S', b"BUY"):
        event.body.word[3] = FH_BID
    elif is_text(&inner, c'S', b"SELL"):
        event.body.word[3] = FH_ASK
    else:
        return FH_ERROR_RANGE
    return price_word(&inner, event, c'p', 0) or size_word(&inner, event, c'q', 1) or set_time(&inner, event, True)


cdef int emit_untyped(Message *message) noexcept nogil:
    """A message without "e": spot's quote or partial depth, or an answer to a request."""
    if has(message, <uint64_t>1 << SLOT_LAST_UPDATE_ID):
        return emit_window(message)
    if has(message, bit(c'u') | bit(c's')):
        return emit_quote(message)
    if message.is_control:
        message.batch.control = 1
        return FH_OK
    return FH_ERROR_UNKNOWN


cdef int emit(Message *message) noexcept nogil:
    """The events of the message noted."""
    if is_foreign(message):
        message.batch.ignored += 1
        message.batch.change_count = message.change_begin
        return FH_OK
    if not message.seen & bit(c'e'):
        return emit_untyped(message)
    if is_text(message, c'e', b"bookTicker"):
        return emit_quote(message)
    if is_text(message, c'e', b"depthUpdate"):
        return emit_depth(message)
    if is_text(message, c'e', b"trade"):
        return emit_trade(message, False)
    if is_text(message, c'e', b"aggTrade"):
        return emit_trade(message, True)
    if is_text(message, c'e', b"markPriceUpdate"):
        return emit_mark(message)
    if is_text(message, c'e', b"kline"):
        return emit_candle(message)
    if is_text(message, c'e', b"24hrTicker") or is_text(message, c'e', b"24hrMiniTicker"):
        return emit_ticker(message, slot_of(message, c'e').text.size == 10)
    if is_text(message, c'e', b"forceOrder"):
        return emit_liquidation(message)
    if is_text(message, c'e', b"serverShutdown") or is_text(message, c'e', b"contractInfo"):
        message.batch.control = 1
        return FH_OK
    return FH_ERROR_UNKNOWN


cdef int decode_list(Message *message, fh_json *cursor) noexcept nogil:
    """An all-market array: every element is an event of its own."""
    cdef int error = FH_OK
    fh_json_array(cursor)
    while error == FH_OK and fh_json_element(cursor):
        if fh_json_peek(cursor) != c'{':
            return cursor.error or FH_ERROR_UNKNOWN
        note_object(message, cursor)
        error = cursor.error
        if error == FH_OK:
            error = emit(message)
    return error


cdef int decode_frame(Message *message, fh_json *cursor) noexcept nogil:
    cdef int error
    if fh_json_peek(cursor) == c'[':
        error = decode_list(message, cursor)
        return error or fh_json_close(cursor)
    error = note_frame(message, cursor)
    if error == FH_OK:
        error = fh_json_close(cursor)
    if error != FH_OK or message.is_list:
        return error
    if message.stream.at != NULL and not message.wrapped:
        return FH_ERROR_MISSING
    return emit(message)


cdef int binance_decode(const fh_symbols *symbols, const fh_instrument *rows, int family, const char *payload,
                        size_t size, fh_batch *batch) noexcept nogil:
    """Append the events of one text frame, as Venue.decode() promises."""
    cdef Message message
    cdef fh_json cursor
    cdef uint32_t begin = batch.event_count
    message.symbols = symbols
    message.rows = rows
    message.batch = batch
    message.family = family
    message.wrapped = message.is_list = message.is_control = False
    message.stream.at = NULL
    fh_batch_mark(batch)
    fh_json_open(&cursor, payload, size)
    cdef int error = decode_frame(&message, &cursor)
    if error != FH_OK:
        fh_batch_rollback(batch)
        return error
    return <int>(batch.event_count - begin)


cdef int snapshot_event(Message *message, uint32_t instrument) noexcept nogil:
    cdef uint64_t last = 0
    cdef fh_event *event = NULL
    if not has(message, <uint64_t>1 << SLOT_LAST_UPDATE_ID) or message.sides != (FH_BID | FH_ASK):
        return FH_ERROR_MISSING
    cdef int error = (slot_uint(&message.slot[SLOT_LAST_UPDATE_ID], &last)
                      or emit_levels(message, instrument, FH_SNAPSHOT, &event))
    if error != FH_OK:
        return error
    event.sequence = event.body.book.last = last
    return set_time(message, event, True) if message.seen & (bit(c'T') | bit(c'E')) else FH_OK


cdef int binance_decode_snapshot(const fh_instrument *rows, uint32_t instrument, const char *body, size_t size,
                                 fh_batch *batch) noexcept nogil:
    """The answer of GET …/depth: {"lastUpdateId":…,"bids":…,"asks":…}, on futures with E and T."""
    cdef Message message
    cdef fh_json cursor
    message.rows = rows
    message.batch = batch
    message.family = BINANCE_SPOT
    message.is_control = False
    fh_batch_mark(batch)
    fh_json_open(&cursor, body, size)
    note_object(&message, &cursor)
    cdef int error = fh_json_close(&cursor)
    if error == FH_OK:
        error = snapshot_event(&message, instrument)
    if error != FH_OK:
        fh_batch_rollback(batch)
        return error
    return 1


# -- continuity ----------------------------------------------------------------------------------------------------

cdef inline int advance(fh_chain *chain, uint64_t last, uint8_t state) noexcept nogil:
    chain.last = last
    chain.state = state
    return FH_VERDICT_APPLY


cdef int binance_chain_spot(fh_chain *chain, const fh_event *event) noexcept nogil:
    """With L the last id applied: u <= L is old, U > L + 1 is a gap (or a snapshot that came too early).

    A change with U <= L < u overlaps what we hold. It is applied: sizes are absolute, so the book after it is
    right; it happens behind a snapshot, and when one connection takes over from another."""
    cdef const fh_book_event *book = &event.body.book
    if event.flags & FH_SNAPSHOT:
        return advance(chain, book.last, FH_CHAIN_LIVE if book.window else FH_CHAIN_SEEDED)
    if book.last <= chain.last:
        return FH_VERDICT_OLD
    if book.first <= chain.last + 1:
        return advance(chain, book.last, FH_CHAIN_LIVE)
    return FH_VERDICT_AHEAD if chain.state == FH_CHAIN_SEEDED else FH_VERDICT_GAP


cdef int binance_chain_futures(fh_chain *chain, const fh_event *event) noexcept nogil:
    """pu alone chains: ranges U to u are not contiguous, for the ids are shared with other symbols.

    Behind a snapshot L: u < L is old; the first change kept has U <= L <= u, or pu <= L where the snapshot ended
    exactly between two changes. u = L is applied and changes nothing, as the venue's own procedure has it."""
    cdef const fh_book_event *book = &event.body.book
    if event.flags & FH_SNAPSHOT:
        return advance(chain, book.last, FH_CHAIN_LIVE if book.window else FH_CHAIN_SEEDED)
    if chain.state == FH_CHAIN_SEEDED:
        if book.last < chain.last:
            return FH_VERDICT_OLD
        if book.first <= chain.last or book.prev <= chain.last:
            return advance(chain, book.last, FH_CHAIN_LIVE)
        return FH_VERDICT_AHEAD
    if book.prev == chain.last and book.last > chain.last:
        return advance(chain, book.last, FH_CHAIN_LIVE)
    return FH_VERDICT_OLD if book.last <= chain.last else FH_VERDICT_GAP


# -- control plane -------------------------------------------------------------------------------------------------

NAMES_PER_MESSAGE = 100  # stream names in one SUBSCRIBE: 100 were accepted, a maximum is not published
INTERVALS = ("1m", "3m", "5m", "15m", "30m", "1h", "2h", "4h", "6h", "8h", "12h", "1d", "3d", "1w", "1M")
DEPTHS = (5, 10, 20)

# Deadlines from subscription to first data. A book or quote is pushed on change only: 24.4 s is the longest seen.
# A quiet market may not trade for minutes; liquidations and listings may not come for hours, so they have none.
FIRST_DATA_S = {"trade": 300.0, "agg_trade": 300.0, "quote": 30.0, "book": 30.0, "ticker": 30.0, "mark": 30.0,
                "candle": 60.0, "liquidation": 0.0, "instrument": 0.0}


def binance_messages(method, streams, request_id):
    """SUBSCRIBE or UNSUBSCRIBE messages: [(request_id, text, streams of that message)]."""
    messages = []
    for begin in range(0, len(streams), NAMES_PER_MESSAGE):
        part = streams[begin:begin + NAMES_PER_MESSAGE]
        text = json.dumps({"method": method, "params": [stream.wire for stream in part], "id": request_id},
                          ensure_ascii=False, separators=(",", ":"))
        messages.append((request_id, text, part))
        request_id += 1
    return messages


def binance_control(payload):
    """What an answer or notice means. An acknowledgement is no proof that the stream exists: Binance
    acknowledges any name, so only first data counts."""
    try:
        frame = json.loads(payload)
    except ValueError as error:
        return [Complaint("malformed", f"control frame is no JSON: {error}")]
    if not isinstance(frame, dict):
        return [Complaint("unknown", f"control frame is no object: {payload[:200]!r}")]
    event = frame["data"] if isinstance(frame.get("data"), dict) else frame
    if event.get("e") == "serverShutdown":
        return [Closing("serverShutdown: the venue will close this connection")]
    if "e" in event:
        return [Alive()]
    request_id = frame["id"] if isinstance(frame.get("id"), int) else 0
    fault = frame["error"] if isinstance(frame.get("error"), dict) else frame
    if "code" not in fault:
        return [Ack(request_id)]
    code, reason = str(fault["code"]), str(fault.get("msg", ""))
    return [Ack(request_id, accepted=False, reason=f"{code}: {reason}") if request_id else Complaint(code, reason)]


def binance_name(venue, symbol, suffix):
    """Stream name of a symbol, in small letters: only the ASCII ones, as the venue does."""
    if not symbol:
        raise VenueError(f"{venue}: a symbol is needed for this channel; an all-market stream does not exist for it")
    return "".join(letter.lower() if letter.isascii() else letter for letter in symbol) + suffix


def binance_choice(venue, channel, what, given, allowed):
    """given, if it is among allowed; the first of allowed where nothing was asked for."""
    if not given:
        return allowed[0]
    if given not in allowed:
        raise VenueError(f"{venue}: {channel.name} has no {what} {given}; use {', '.join(map(str, allowed))}, or leave it out")
    return given


def binance_plain(venue, channel):
    """Refuse a depth or a speed where the stream has none."""
    if channel.depth or channel.speed:
        raise VenueError(f"{venue}: {channel.name} has neither depth nor speed; ask for {channel.name!r}")


def binance_book(venue, endpoint, symbol, channel, change_speeds, window_speeds):
    """Stream of a book. change_speeds and window_speeds: speed -> suffix of the stream's name, default first.

    Depth 0 is every level: changes, seeded by a REST snapshot. Depth 5, 10 or 20 is a window, whole in each message."""
    if channel.depth == 0:
        speed = binance_choice(venue, channel, "speed", channel.speed, tuple(change_speeds))
        wire = binance_name(venue, symbol, "@depth" + change_speeds[speed])
        return Stream(endpoint, wire, symbol, "book", 0, "rest", FIRST_DATA_S["book"])
    if channel.depth not in DEPTHS:
        raise VenueError(f"{venue}: book has no depth {channel.depth}; use {', '.join(map(str, DEPTHS))}, "
                         f"or leave it out for the whole book")
    speed = binance_choice(venue, channel, "speed", channel.speed, tuple(window_speeds))
    wire = binance_name(venue, symbol, f"@depth{channel.depth}{window_speeds[speed]}")
    return Stream(endpoint, wire, symbol, "book", channel.depth, "window", FIRST_DATA_S["book"])


FUTURES_CHANGE_SPEEDS = {"100ms": "@100ms", "250ms": "", "500ms": "@500ms", "0ms": "@0ms"}
FUTURES_WINDOW_SPEEDS = {"100ms": "@100ms", "250ms": "", "500ms": "@500ms"}
FUTURES_MARK_SPEEDS = {"1s": "@1s", "3s": ""}
FUTURES_ALL_MARKET = {"quote": "!bookTicker", "mark": "!markPrice@arr@1s", "liquidation": "!forceOrder@arr",
                      "ticker": "!ticker@arr"}


def binance_futures_stream(venue, symbol, channel, public, market):
    """Stream of a futures channel; public and market are the endpoints that deliver it. Symbol "" asks for all
    symbols, where such a stream exists.

    The fastest documented book is @100ms. @depth@0ms is faster and delivers, but is not documented: it is used
    when asked for by name ("book@0ms")."""
    name = channel.name
    if name == "open_interest":
        raise VenueError(f"{venue}: open interest is not pushed; the venue has it over REST only")
    if name == "greeks":
        raise VenueError(f"{venue}: greeks do not exist here; the venue lists no options on this endpoint")
    if name == "book":
        return binance_book(venue, public, symbol, channel, FUTURES_CHANGE_SPEEDS, FUTURES_WINDOW_SPEEDS)
    if name == "candle":
        if channel.depth:
            raise VenueError(f"{venue}: candle has no depth; ask for 'candle@1m'")
        interval = binance_choice(venue, channel, "interval", channel.speed, INTERVALS)
        return Stream(market, binance_name(venue, symbol, f"@kline_{interval}"), symbol, "candle",
                      first_data_s=FIRST_DATA_S["candle"])
    if name in ("mark", "index", "funding"):
        if channel.depth:
            raise VenueError(f"{venue}: {name} has no depth; ask for {name!r}")
        suffix = FUTURES_MARK_SPEEDS[binance_choice(venue, channel, "speed", channel.speed, tuple(FUTURES_MARK_SPEEDS))]
        wire = binance_name(venue, symbol, f"@markPrice{suffix}") if symbol else f"!markPrice@arr{suffix}"
        return Stream(market, wire, symbol, "mark", first_data_s=FIRST_DATA_S["mark"])
    binance_plain(venue, channel)
    if name == "instrument":
        return Stream(market, "!contractInfo", "", "instrument", first_data_s=0.0)
    suffix = {"trade": "@trade", "agg_trade": "@aggTrade", "quote": "@bookTicker", "ticker": "@ticker",
              "liquidation": "@forceOrder"}[name]
    wire = FUTURES_ALL_MARKET[name] if not symbol and name in FUTURES_ALL_MARKET else binance_name(venue, symbol, suffix)
    return Stream(public if name in ("trade", "quote") else market, wire, symbol, name, first_data_s=FIRST_DATA_S[name])


def binance_snapshot_request(path, symbol, depth, weights):
    """GET of a book snapshot. weights: limit -> weight, rising; the smallest limit that holds depth, 0 the largest."""
    limits = sorted(weights)
    limit = next((limit for limit in limits if depth and limit >= depth), max(limits))
    return RestRequest(f"{path}?symbol={urllib.parse.quote(symbol)}&limit={limit}", weights[limit])


def plain_decimal(text):
    """A decimal text without trailing zeros: "0.00100000" is "0.001"."""
    return format(decimal.Decimal(text).normalize(), "f")


def binance_steps(row):
    """(tick, lot) of an exchangeInfo row, from its filters; where one is 0 (any), the venue's precision."""
    filters = {entry["filterType"]: entry for entry in row.get("filters", ())}
    tick = plain_decimal(filters.get("PRICE_FILTER", {}).get("tickSize", "0"))
    lot = plain_decimal(filters.get("LOT_SIZE", {}).get("stepSize", "0"))
    price_digits = row.get("pricePrecision", row.get("quotePrecision", 8))
    size_digits = row.get("quantityPrecision", row.get("baseAssetPrecision", 8))
    return (tick if tick != "0" else plain_decimal(f"1e-{price_digits}"),
            lot if lot != "0" else plain_decimal(f"1e-{size_digits}"))


def binance_rows(venue, bodies):
    """The "symbols" of exchangeInfo answers."""
    for body in bodies:
        try:
            answer = json.loads(body)
        except ValueError as error:
            raise VenueError(f"{venue}: exchangeInfo is no JSON ({error}); it began {body[:80]!r}") from error
        if not isinstance(answer, dict) or not isinstance(answer.get("symbols"), list):
            raise VenueError(f"{venue}: exchangeInfo has no list \"symbols\"; it began {body[:200]!r}")
        yield from answer["symbols"]


def binance_spot_instruments(venue, bodies):
    instruments = []
    for row in binance_rows(venue, bodies):
        tick, lot = binance_steps(row)
        instruments.append(Instrument(row["symbol"], f"{row['baseAsset']}-{row['quoteAsset']}", "spot", tick, lot,
                                      listed=row["status"] == "TRADING"))
    return instruments


def binance_futures_instruments(venue, bodies, inverse):
    """Perpetuals and delivery contracts. An inverse contract counts contractSize units of quote currency."""
    instruments = []
    for row in binance_rows(venue, bodies):
        tick, lot = binance_steps(row)
        pair = f"{row['baseAsset']}-{row['quoteAsset']}"
        perpetual = "PERPETUAL" in row["contractType"] or "_" not in row["symbol"]
        expiry_ns = 0 if perpetual else row["deliveryDate"] * 1000000
        if perpetual:
            canonical = f"{pair}-PERP"
        else:
            date = datetime.datetime.fromtimestamp(expiry_ns // 10**9, datetime.timezone.utc)
            canonical = f"{pair}-{date:%Y%m%d}"
        instruments.append(Instrument(row["symbol"], canonical, "perpetual" if perpetual else "future", tick, lot,
                                      multiplier=plain_decimal(str(row.get("contractSize", 1))), inverse=inverse,
                                      expiry_ns=expiry_ns,
                                      listed=row.get("status", row.get("contractStatus")) == "TRADING"))
    return instruments


def binance_profile(endpoint, url, **blocks):
    """A capacity profile of one Binance endpoint: what all share, and the blocks that differ. None: not published."""
    profile = {
        "venue": "binance", "endpoint": endpoint, "as_of": "2026-07-31",
        "url": {"primary": url},
        "liveness": {"server_ping": "frame", "server_ping_s": 180, "pong_deadline_s": 600, "pong_echo_payload": True,
                     "client_ping": None},
        "conn": {"max_open": None, "max_open_scope": None, "counts_http": False, "attempts": [], "reject": "", "ban_s": None,
                 "first_sub_deadline_s": None, "settle_delay_s": 0},
        "client_msg": {"counts_ops": "all", "credits": None},
        "sub": {"max_per_conn": 1024, "soft_per_conn": None, "max_per_ip": None, "max_dup_per_product_channel": None,
                "max_args_per_msg": None, "max_args_chars_per_conn": None, "max_msg_bytes": None, "weight_by_channel": {},
                "soft_by_channel": {}, "exclusive": [], "in_url": True, "ack": "per_request", "ack_means_data": False, "dup_sub": "unknown"},
        "lifetime": {"max_s": 86400, "shutdown_notice": "serverShutdown", "notice_lead_s": None},
        "wire": {"opcode": "text", "codec": "json", "payload_compression": "none", "permessage_deflate": "unknown"},
        "time": {"unit": "ms", "engine_field": "T", "send_field": "E"},
    }
    for name in ("conn", "client_msg", "sub"):
        blocks[name] = {**profile[name], **blocks.get(name, {})}
    return profile | blocks
