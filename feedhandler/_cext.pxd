# The only door to the C core: every .pyx cimports its C from here. The headers are the one description.
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "<stdbool.h>" nogil:
    ctypedef bint bool_t "bool"

cdef extern from "include/feedhandler.h" nogil:
    uint32_t FH_ABI_VERSION
    uint64_t FH_SCHEMA_HASH
    uint64_t FH_SLOT_SIZE
    uint64_t FH_CLAIM_BLOCK
    int64_t FH_UNDEFINED
    uint32_t FH_CANDLE_CLOSED
    uint32_t FH_INSTRUMENT_NONE
    int FH_BOOK_TOP
    int FH_RING_MAX
    int FH_READER_MAX
    uint32_t FH_LOOK_POLLS
    enum:
        FH_CONTINUATION, FH_TRADE, FH_QUOTE, FH_TOUCH, FH_LEVEL, FH_MARK, FH_INDEX, FH_FUNDING
        FH_OPEN_INTEREST, FH_LIQUIDATION, FH_CANDLE, FH_TICKER, FH_GREEKS, FH_STATUS
    enum:
        FH_LAST, FH_SNAPSHOT, FH_RESET, FH_GAP_BEFORE, FH_STALE, FH_INEXACT, FH_OVERFLOW, FH_TS_SUSPECT
    enum:
        FH_SIDE_NONE, FH_BID, FH_ASK
    enum:
        FH_GAP, FH_RESYNC, FH_STALE_STREAM, FH_LIVE, FH_HALT, FH_HEARTBEAT, FH_EPOCH, FH_SESSION_UP
        FH_SESSION_DOWN, FH_MOVED_OUT, FH_MOVED_IN, FH_INSTRUMENT_CHANGED, FH_CLOCK, FH_REJECTED, FH_WORKER_SILENT
    uint64_t FH_MAGIC_RING, FH_MAGIC_STATE, FH_MAGIC_INSTRUMENTS, FH_MAGIC_READERS, FH_MAGIC_COUNTERS
    enum:
        FH_SPOT, FH_PERPETUAL, FH_FUTURE, FH_OPTION
    enum:
        FH_LISTED, FH_SUBSCRIBED, FH_DELISTED
    enum:
        FH_RING_INIT, FH_RING_LIVE, FH_RING_CLOSED

    ctypedef struct fh_body_trade:
        int64_t price
        int64_t size
        uint64_t trade_id
        uint8_t aggressor
        uint8_t aggregate
        uint32_t count
    ctypedef struct fh_body_quote:
        int64_t bid_price
        int64_t bid_size
        int64_t ask_price
        int64_t ask_size
    ctypedef struct fh_body_level:
        int64_t price
        int64_t size
        uint64_t sequence
        uint8_t side
        uint32_t order_count
    ctypedef struct fh_body_mark:
        int64_t price
    ctypedef struct fh_body_funding:
        int64_t rate_e12
        int64_t predicted_e12
        uint64_t next_ns
        uint32_t interval_s
    ctypedef struct fh_body_open_interest:
        int64_t size
        int64_t value
    ctypedef struct fh_body_liquidation:
        int64_t price
        int64_t size
        uint64_t order_id
        uint8_t side
    ctypedef struct fh_body_status:
        uint32_t code
        uint32_t detail
        uint64_t a
        uint64_t b
        uint64_t c
    ctypedef union fh_record_body:
        int64_t word[4]
        fh_body_trade trade
        fh_body_quote quote
        fh_body_level level
        fh_body_mark mark
        fh_body_funding funding
        fh_body_open_interest open_interest
        fh_body_liquidation liquidation
        fh_body_status status
    ctypedef struct fh_record:
        uint64_t commit
        uint64_t ts_recv_ns
        uint64_t ts_event_ns
        uint32_t instrument
        uint8_t kind
        uint8_t flags
        uint16_t session
        fh_record_body body
    ctypedef struct fh_file:
        uint64_t magic
        uint32_t abi_version
        uint32_t header_size
        uint64_t schema_hash
        uint64_t total_size
        uint64_t generation
        uint64_t created_ns
        uint32_t row_size
        uint32_t row_max
    ctypedef struct fh_ring:
        fh_file file
        uint64_t slot_count
        uint32_t worker
        uint64_t epoch
        uint32_t pid
        uint32_t state
        uint64_t pid_start
        uint64_t changed
        uint64_t claim
        uint64_t head
        uint32_t wake_seq
        uint32_t wake_fenced
        uint64_t wake_last_ns
        uint64_t heartbeat_ns
    ctypedef struct fh_instrument:
        uint32_t id
        uint8_t kind
        uint8_t state
        int8_t price_exponent
        int8_t size_exponent
        uint16_t owner
        uint16_t venue
        int8_t multiplier_exponent
        uint8_t inverse
        int64_t tick
        int64_t lot
        int64_t multiplier
        uint64_t expiry_ns
        int64_t strike
        char venue_name[24]
        char symbol[48]
        char canonical[64]
    ctypedef struct fh_state_l1:
        uint64_t position
        uint64_t ts_recv_ns
        uint64_t ts_event_ns
        uint64_t sequence
        int64_t bid_price
        int64_t bid_size
        int64_t ask_price
        int64_t ask_size
        int64_t quote_bid_price
        int64_t quote_bid_size
        int64_t quote_ask_price
        int64_t quote_ask_size
        int64_t trade_price
        int64_t trade_size
        uint64_t trade_id
        int64_t mark_price
        int64_t index_price
        int64_t funding_e12
        uint64_t funding_next_ns
        int64_t open_interest
        uint32_t status
        uint8_t trade_aggressor
        uint8_t flags
        int8_t price_exponent
        int8_t size_exponent
    ctypedef struct fh_level_pair:
        int64_t price
        int64_t size
    ctypedef struct fh_state_book:
        uint64_t position
        uint64_t sequence
        uint64_t ts_event_ns
        uint16_t bid_count
        uint16_t ask_count
        uint8_t flags
        int8_t price_exponent
        int8_t size_exponent
        fh_level_pair bid[20]
        fh_level_pair ask[20]
    ctypedef struct fh_state_row:
        uint32_t owner
        uint64_t latch_l1
        uint64_t latch_book
        uint64_t quote_sequence[2]
        uint64_t quote_position[2]
        fh_state_l1 l1[2]
        fh_state_book book[2]
    ctypedef struct fh_reader_cursor:
        uint64_t cursor
        uint64_t lost
    ctypedef struct fh_reader_slot:
        uint32_t pid
        uint64_t pid_start
        uint64_t polled_ns
        char name[40]
        fh_reader_cursor ring[256]
    ctypedef struct fh_readers:
        fh_file file
        uint32_t waiting[256]

cdef extern from "include/feedhandler_reader.h" nogil:
    enum:
        FH_FEED_OK, FH_FEED_EMPTY, FH_FEED_LAPPED, FH_FEED_NEW_RING, FH_FEED_SMALL, FH_FEED_BUSY, FH_FEED_ABSENT, FH_FEED_BAD
    ctypedef struct fh_ring_reader:
        const fh_ring *ring
        const fh_record *slots
        uint64_t slot_count
        uint64_t position
        uint64_t lost
        uint64_t dropped
    int fh_ring_map(fh_ring_reader *reader, const char *path, char *error, size_t error_size)
    void fh_ring_unmap(fh_ring_reader *reader)
    int fh_ring_batch(fh_ring_reader *reader, const fh_record **first, size_t *count, uint64_t *lost)
    bint fh_ring_valid(const fh_ring_reader *reader)
    bint fh_ring_advance(fh_ring_reader *reader, size_t count)
    const fh_record *fh_ring_peek(const fh_ring_reader *reader, uint64_t position, int *there)
    bint fh_ring_is(const fh_record *record, uint32_t code)
    int fh_state_read_l1(const fh_state_row *row, fh_state_l1 *out)
    void fh_store_release(uint64_t *word, uint64_t value)
    int fh_state_read_book(const fh_state_row *row, fh_state_book *out)

cdef extern from "include/feedhandler_feed.h" nogil:
    ctypedef struct fh_feed:
        const fh_file *instruments
        const fh_file *state
        fh_readers *readers
        fh_reader_slot *slot
        uint32_t ring_count
        uint32_t turn
        uint32_t polls
        fh_ring_reader ring[256]
    ctypedef struct fh_feed_news:
        size_t count
        uint32_t worker
        uint64_t lost
    int fh_feed_open(fh_feed *feed, const char *name, char *error, size_t error_size)
    void fh_feed_close(fh_feed *feed)
    int fh_feed_poll(fh_feed *feed, fh_record *out, size_t max, fh_feed_news *news)
    int fh_feed_idle(fh_feed *feed, fh_record *out, fh_feed_news *news)
    bint fh_feed_held(const fh_feed *feed, const fh_ring_reader *reader)
    bint fh_feed_hold(fh_feed *feed, fh_ring_reader *reader, const fh_record *moved_in)
    bint fh_feed_pending(const fh_feed *feed)
    void fh_feed_wait(fh_feed *feed, uint64_t timeout_ns)
    const fh_state_row *fh_feed_state(const fh_feed *feed, uint32_t instrument)
    uint64_t fh_clock_mono_ns()

cdef extern from "fh_error.h" nogil:
    enum:
        FH_OK, FH_ERROR_MALFORMED, FH_ERROR_UNKNOWN, FH_ERROR_SYMBOL, FH_ERROR_FULL, FH_ERROR_DIGITS
        FH_ERROR_MISSING, FH_ERROR_RANGE, FH_ERROR_DEPTH, FH_ERROR_SYSTEM

cdef extern from "fh_decimal.h" nogil:
    int FH_DIGITS_MAX
    ctypedef struct fh_decimal:
        int64_t mantissa
        int16_t digits
        uint16_t flags
    int fh_decimal_parse(const char *text, size_t size, fh_decimal *decimal)
    int64_t fh_decimal_rescale(const fh_decimal *decimal, int digits, uint16_t *flags)
    double fh_decimal_double(const fh_decimal *decimal)
    int fh_decimal_digits_needed(const fh_decimal *decimal)
    size_t fh_decimal_format(int64_t mantissa, int digits, char *buffer)

cdef extern from "fh_scan.h" nogil:
    bool_t fh_scan_is_13_digits(const char *at)
    uint64_t fh_scan_digits16(const char *at, unsigned size)

cdef extern from "fh_json.h" nogil:
    int FH_JSON_PAD
    ctypedef struct fh_json:
        const char *at
        const char *end
        int error
    ctypedef struct fh_text:
        const char *at
        size_t size
        bool_t escaped
    ctypedef fh_text fh_key
    bool_t fh_key_is(const fh_key *key, const char *name)
    void fh_json_open(fh_json *json, const char *text, size_t size)
    bool_t fh_json_fail(fh_json *json, int error)
    int fh_json_close(fh_json *json)
    bool_t fh_json_object(fh_json *json)
    bool_t fh_json_key(fh_json *json, fh_key *key)
    bool_t fh_json_array(fh_json *json)
    bool_t fh_json_element(fh_json *json)
    char fh_json_peek(fh_json *json)
    bool_t fh_json_string(fh_json *json, fh_text *text)
    bool_t fh_json_decimal(fh_json *json, fh_decimal *decimal)
    bool_t fh_json_decimal_usual(fh_json *json, fh_decimal *decimal)
    bool_t fh_json_quoted_usual(fh_json *json, fh_decimal *decimal)
    bool_t fh_json_uint(fh_json *json, uint64_t *value)
    bool_t fh_json_int(fh_json *json, int64_t *value)
    bool_t fh_json_bool(fh_json *json, bool_t *value)
    bool_t fh_json_null(fh_json *json)
    bool_t fh_json_absent(fh_json *json)
    bool_t fh_json_skip(fh_json *json)
    bool_t fh_json_raw(fh_json *json, fh_text *text)
    bool_t fh_json_time_ms(fh_json *json, uint64_t *ns)
    bool_t fh_json_time_iso(fh_json *json, uint64_t *ns)
    bool_t fh_json_double(fh_json *json, double *value)

cdef extern from "fh_batch.h" nogil:
    enum:
        FH_CHANNEL_TRADE, FH_CHANNEL_AGG_TRADE, FH_CHANNEL_QUOTE, FH_CHANNEL_BOOK, FH_CHANNEL_TICKER
        FH_CHANNEL_MARK, FH_CHANNEL_INDEX, FH_CHANNEL_FUNDING, FH_CHANNEL_OPEN_INTEREST
        FH_CHANNEL_LIQUIDATION, FH_CHANNEL_CANDLE, FH_CHANNEL_GREEKS, FH_CHANNEL_INSTRUMENT, FH_CHANNEL_COUNT
    ctypedef struct fh_change:
        int64_t price
        int64_t size
        uint32_t order_count
        uint8_t side
        int8_t price_digits
        int8_t size_digits
        uint8_t flags
    ctypedef struct fh_book_event:
        uint64_t first
        uint64_t last
        uint64_t prev
        uint32_t change_begin
        uint32_t change_count
        uint32_t checksum
        uint8_t has_first
        uint8_t has_prev
        uint8_t has_checksum
        uint8_t window
    ctypedef union fh_event_body:
        int64_t word[12]
        fh_book_event book
    ctypedef struct fh_event:
        uint64_t ts_event_ns
        uint64_t sequence
        uint32_t instrument
        uint8_t kind
        uint8_t flags
        uint8_t channel
        uint8_t slot_count
        fh_event_body body
    ctypedef struct fh_batch:
        fh_event *events
        uint32_t event_count
        uint32_t event_max
        fh_change *changes
        uint32_t change_count
        uint32_t change_max
        uint32_t control
        uint32_t ignored
        uint32_t unlisted
        uint32_t accept_inexact
        uint32_t wanted_instrument
        int8_t wanted_price_digits
        int8_t wanted_size_digits
        fh_text unlisted_symbol
    int fh_batch_init(fh_batch *batch, uint32_t event_max, uint32_t change_max)
    void fh_batch_free(fh_batch *batch)
    void fh_batch_clear(fh_batch *batch)
    void fh_batch_mark(fh_batch *batch)
    void fh_batch_rollback(fh_batch *batch)
    fh_event *fh_batch_event(fh_batch *batch, uint8_t kind)
    int fh_batch_change(fh_batch *batch, uint8_t side, const fh_decimal *price, const fh_decimal *size, uint32_t order_count)
    int fh_batch_price(fh_batch *batch, fh_event *event, const fh_instrument *row, const fh_decimal *decimal, int64_t *out)
    int fh_batch_size(fh_batch *batch, fh_event *event, const fh_instrument *row, const fh_decimal *decimal, int64_t *out)
    int fh_batch_scale(fh_batch *batch, fh_event *event, const fh_instrument *row)
    int fh_batch_levels(fh_batch *batch, fh_json *json, uint8_t side, int skip, int count_index)
    int fh_batch_levels_object(fh_batch *batch, fh_json *json, uint8_t side, const char *price_key, const char *size_key)

cdef extern from "fh_book.h" nogil:
    enum:
        FH_CHAIN_WAITING, FH_CHAIN_SEEDED, FH_CHAIN_LIVE
    ctypedef struct fh_chain:
        uint64_t last
        uint8_t state
        uint32_t old_run
    enum:
        FH_VERDICT_APPLY, FH_VERDICT_OLD, FH_VERDICT_GAP, FH_VERDICT_AHEAD
    ctypedef struct fh_level:
        int64_t price
        int64_t size
    ctypedef struct fh_side_array:
        fh_level *level
        uint32_t count
        uint32_t max
    ctypedef struct fh_book:
        fh_side_array bid
        fh_side_array ask
        uint64_t levels_refused
        uint64_t deletes_absent
    int fh_book_init(fh_book *book, uint32_t level_max)
    void fh_book_free(fh_book *book)
    void fh_book_clear(fh_book *book)
    int fh_book_set(fh_book *book, uint8_t side, int64_t price, int64_t size)
    void fh_book_truncate(fh_book *book, uint32_t depth)
    bool_t fh_book_rescale(fh_book *book, int price_power, int size_power)
    const fh_level *fh_book_best(const fh_side_array *side)
    uint32_t fh_book_crc_kraken(const fh_book *book, int price_added, int size_added)
    uint32_t fh_book_crc_okx(const fh_book *book, int price_digits, int size_digits)

cdef extern from "fh_symbols.h" nogil:
    ctypedef struct fh_symbols:
        pass
    fh_symbols *fh_symbols_new(uint32_t symbol_max)
    void fh_symbols_free(fh_symbols *symbols)
    int fh_symbols_put(fh_symbols *symbols, const char *text, size_t size, uint32_t instrument)
    uint32_t fh_symbols_get(const fh_symbols *symbols, const char *text, size_t size)

cdef extern from "fh_ring.h" nogil:
    ctypedef struct fh_writer:
        fh_ring *ring
        fh_record *slots
        uint64_t position
        uint64_t claimed
        uint64_t mask
        uint64_t wake_count
        uint32_t *waiting
        int fd
    int fh_ring_create(fh_writer *writer, int dir_fd, uint32_t worker, uint64_t slot_count, uint64_t generation)
    int fh_ring_resume(fh_writer *writer, int dir_fd, uint32_t worker)
    void fh_ring_close(fh_writer *writer)
    void fh_ring_put(fh_writer *writer, const fh_record *record)
    fh_record *fh_ring_slot(fh_writer *writer)
    void fh_ring_commit(fh_writer *writer)
    void fh_ring_flush(fh_writer *writer)
    void fh_ring_wake(fh_writer *writer, uint64_t now_ns)
    void fh_ring_heartbeat(fh_writer *writer, uint64_t now_ns)

cdef extern from "fh_state.h" nogil:
    ctypedef struct fh_table:
        fh_file *file
        char *rows
        uint32_t row_max
        uint64_t size
        int fd
    int fh_table_create(fh_table *table, int dir_fd, const char *name, uint64_t magic, uint32_t row_size, uint32_t row_max, uint64_t generation)
    int fh_readers_open(fh_table *table, int dir_fd)
    int fh_table_open(fh_table *table, int dir_fd, const char *name, uint64_t magic, uint32_t row_size)
    void fh_table_close(fh_table *table)
    void fh_state_put_l1(fh_state_row *row, const fh_state_l1 *value)
    void fh_state_put_book(fh_state_row *row, const fh_book *book, const fh_state_book *head)
    void fh_state_give(fh_state_row *row, uint32_t worker)
    void fh_state_hand_over(fh_state_row *row, uint32_t worker)
    uint32_t fh_state_owner(const fh_state_row *row)
    uint32_t fh_state_mark_stale(fh_table *table, uint32_t worker, uint64_t position)

cdef extern from "fh_counters.h" nogil:
    enum:
        FH_COUNTER_frames, FH_COUNTER_frame_bytes, FH_COUNTER_frames_control, FH_COUNTER_frames_malformed
        FH_COUNTER_frames_unknown, FH_COUNTER_frames_unlisted, FH_COUNTER_frames_oversize, FH_COUNTER_frames_protocol_error
        FH_COUNTER_frames_utf8_error, FH_COUNTER_events, FH_COUNTER_events_ignored, FH_COUNTER_records, FH_COUNTER_batches
        FH_COUNTER_book_messages, FH_COUNTER_book_levels, FH_COUNTER_book_stale, FH_COUNTER_book_gaps, FH_COUNTER_book_resyncs
        FH_COUNTER_book_snapshots, FH_COUNTER_book_checksum_ok, FH_COUNTER_book_checksum_bad, FH_COUNTER_book_levels_refused
        FH_COUNTER_book_deletes_absent, FH_COUNTER_book_crossed, FH_COUNTER_book_pending_dropped, FH_COUNTER_duplicates
        FH_COUNTER_inexact, FH_COUNTER_overflow, FH_COUNTER_exponent_raised, FH_COUNTER_ts_suspect, FH_COUNTER_sessions_opened
        FH_COUNTER_sessions_closed, FH_COUNTER_subscribe_sent, FH_COUNTER_subscribe_acked, FH_COUNTER_subscribe_rejected
        FH_COUNTER_first_data_missed, FH_COUNTER_stale_streams, FH_COUNTER_pings, FH_COUNTER_pongs, FH_COUNTER_wakes
        FH_COUNTER_loop_ns_max, FH_COUNTER_state_rows, FH_COUNTER_resumes, FH_COUNTER_COUNT
    enum:
        FH_STAGE_DECODE, FH_STAGE_PUBLISH, FH_STAGE_VENUE, FH_STAGE_LOOP, FH_STAGE_FIRST_DATA, FH_STAGE_COUNT
    int FH_SESSION_MAX
    int FH_ERROR_ROW_MAX
    int FH_HISTOGRAM_BUCKETS
    ctypedef struct fh_histogram:
        uint64_t count
        uint64_t sum_ns
        uint64_t max_ns
        uint64_t min_ns
        uint64_t bucket[2304]
    ctypedef struct fh_session_row:
        uint32_t id
        uint32_t state
        uint64_t opened_ns
        uint64_t frame_ns_last
        uint64_t frames
        uint64_t bytes
        uint64_t records
        uint64_t gaps
        uint64_t reconnects
        uint32_t streams
        uint32_t streams_live
        uint64_t close_code_last
        char venue[24]
        char endpoint[24]
        char address[48]
        int64_t lag_sum_ns
        uint64_t lag_count
        int64_t lag_min_ns
        uint64_t first
        uint64_t second
        uint64_t behind_ns
        uint64_t behind_count
    ctypedef struct fh_error_row:
        uint64_t first_ns
        uint64_t last_ns
        uint64_t count
        uint32_t code
        uint32_t session
        char text[224]
    ctypedef struct fh_counters:
        fh_file file
        uint32_t worker
        uint32_t pid
        uint64_t pid_start
        uint64_t heartbeat_ns
        uint64_t counter[128]
        fh_histogram stage[5]
        fh_session_row session[512]
        fh_error_row error[128]
    fh_counters *fh_counters_create(int dir_fd, uint32_t worker, uint64_t generation)
    fh_counters *fh_counters_open(int dir_fd, uint32_t worker)
    void fh_counters_close(fh_counters *counters)
    const char *fh_counter_name(int index)
    void fh_histogram_add(fh_histogram *histogram, uint64_t ns)
    uint64_t fh_histogram_quantile(const fh_histogram *histogram, double q)
    void fh_error_add(fh_counters *counters, uint64_t now_ns, uint32_t code, uint32_t session, const char *text, size_t size)
