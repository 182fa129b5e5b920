"""The publisher's layout: what session.pyx calls once per frame, and what a slot holds."""
cimport cython
from libc.stdint cimport int8_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from feedhandler._cext cimport (fh_batch, fh_book, fh_chain, fh_change, fh_counters, fh_event, fh_instrument, fh_record,
                                fh_state_l1, fh_state_row, fh_table, fh_writer)
from feedhandler.venue cimport Venue

# What the publisher tells the control plane, per (instrument, channel); drained with Publisher.notices().
cdef enum:
    NOTICE_FIRST_DATA = 1   # first event since the stream was (re)subscribed
    NOTICE_GAP = 2          # the book's chain broke (a: expected, b: received) or its checksum failed (b: 0)
    NOTICE_LIVE = 3         # the book is in sync
    NOTICE_AHEAD = 4        # the REST snapshot is older than the first held-back change: fetch another
    NOTICE_EXPONENT = 5     # exponents of the instrument were lowered (a, b: new price and size exponent, as int)
    NOTICE_PENDING_FULL = 6 # changes held back for a snapshot overflowed and were dropped: start the sync again

cdef enum:
    CHANNEL_MAX = 13        # FH_CHANNEL_COUNT, as a number the compiler can size an array by
    LINE_MAX = 4            # sessions that may carry one stream at once: A, B, and a rollover of each
    RUN_SIZE = 30           # changes in one run of the held-back pool: 728 bytes

# Where a kept book stands. Only LIVE books publish levels.
cdef enum:
    BOOK_NONE = 0           # nobody asked for one
    BOOK_WAITING = 1        # subscribed, no snapshot yet; changes are dropped
    BOOK_SYNCING = 2        # a REST snapshot is on its way; changes are held back
    BOOK_LIVE = 3
    BOOK_GAP = 4            # the chain broke; changes are dropped until the next snapshot

cdef enum:
    SEED_IN_BAND = 0
    SEED_REST = 1
    SEED_WINDOW = 2

# One (instrument, channel).
ctypedef struct fh_stream:
    uint64_t last_ns        # receive time of the last message
    uint64_t messages
    uint64_t gaps
    uint64_t sequence       # highest venue sequence published
    uint64_t seen           # bit n: sequence - n was published
    uint64_t frame          # number of the frame that set sequence: its further events are no duplicates
    uint32_t old_run        # consecutive events older than the window: the venue may have started again
    uint16_t session[4]     # sessions that delivered since they came up
    uint8_t session_count
    uint8_t lines           # add_stream() minus remove_stream()
    uint8_t removed         # 1: let go of; what still arrives is dropped
    uint8_t first_pending   # 1: NOTICE_FIRST_DATA still to come
    uint8_t gap_before      # 1: the next record says FH_GAP_BEFORE
    uint8_t notices         # bit n: notice n waits for the control plane

# A book message held back until its REST snapshot arrives.
ctypedef struct fh_pending:
    fh_event event
    uint64_t ts_recv_ns
    uint32_t next           # of the same instrument, or of the free list; NONE at the end
    uint32_t run            # first run of its changes
    uint16_t session

ctypedef struct fh_run:
    fh_change change[30]
    uint32_t next

ctypedef struct fh_book_stats:
    uint64_t snapshots, updates, stale, dropped, gaps, checksum_ok, checksum_bad, crossed

# One instrument: its book, its row, its streams.
ctypedef struct fh_slot:
    fh_state_l1 l1          # the row as it will be written
    fh_book book
    fh_chain chain
    fh_book_stats stats
    int64_t touch[4]        # as last published
    uint64_t book_ts_event_ns
    uint64_t gap_a, gap_b
    uint32_t instrument
    uint32_t depth          # levels the venue keeps for us; 0: unlimited
    uint32_t pending_first, pending_last, pending_count
    uint32_t gap_waited     # messages of a line that is ahead of the other, dropped at the present place of the chain
    uint16_t gap_session    # the line that is ahead
    uint16_t book_session   # the session whose snapshot the book stands on
    uint8_t book_state, seed
    uint8_t known           # 1: exponents taken from the venue's row
    uint8_t owned           # 1: this worker writes the row in `state`
    uint8_t chained         # 1: the venue numbers or checksums the messages of this book
    uint8_t l1_dirty, book_dirty, noticed
    fh_stream stream[13]


@cython.final
cdef class Publisher:
    cdef fh_writer writer
    cdef fh_batch batch
    cdef fh_counters *counters
    cdef fh_table state, readers
    cdef fh_slot *slots             # by instrument id
    cdef fh_pending *pending        # pool of held-back messages
    cdef fh_run *runs               # pool of their changes
    cdef fh_change *out_bid         # levels one message changed, collected before its checksum is known
    cdef fh_change *out_ask
    cdef uint32_t *dirty            # instruments whose row is to be written
    cdef uint32_t *noticed          # instruments with notices
    cdef char *padded               # copy of what Python hands in, with the padding a decoder may touch
    cdef size_t padded_size
    cdef uint32_t out_bid_count, out_ask_count, dirty_count, pending_free, run_free, run_used
    cdef set interrupted            # ids that our dead predecessor published, until the shard was taken over
    cdef bint resumed_any
    cdef dict inherited             # id: exponents that a resumed ring's readers know, until the instrument is added
    cdef uint64_t frame_count, flushed, recv_first_ns, clock_ns, clock_offset_ns, part_max
    cdef readonly uint32_t row_max, level_max, worker
    cdef readonly uint32_t notice_count     # instruments with notices; 0: notices() has nothing to say
    cdef readonly uint32_t control          # 1: the last frame must also go to Venue.control()

    # Data plane: what a session calls.
    cdef int frame(self, Venue venue, uint32_t session, const char *payload, size_t size, uint64_t ts_recv_ns) noexcept nogil
    cdef void flush(self, uint64_t now_mono_ns) noexcept nogil

    # Its parts, in the order of the file.
    cdef int decode(self, Venue venue, const char *payload, size_t size, uint64_t ts_recv_ns, uint16_t session) noexcept nogil
    cdef bint lower(self, Venue venue, uint64_t ts_recv_ns, uint16_t session) noexcept nogil
    cdef bint rescale(self, fh_slot *slot, int price_power, int size_power) noexcept nogil
    cdef void refuse(self, int error, const char *payload, size_t size, uint64_t ts_recv_ns, uint16_t session) noexcept nogil
    cdef void distrust(self, uint64_t ts_recv_ns, uint16_t session) noexcept nogil
    cdef void event(self, Venue venue, const fh_event *event, uint16_t session, uint64_t ts_recv_ns) noexcept nogil
    cdef bint arrived(self, fh_stream *stream, const fh_event *event) noexcept nogil
    cdef void plain(self, fh_slot *slot, fh_stream *stream, const fh_event *event, uint16_t session, uint64_t ts_recv_ns) noexcept nogil
    cdef void book_message(self, Venue venue, fh_slot *slot, const fh_event *event, uint16_t session, uint64_t ts_recv_ns) noexcept nogil
    cdef void book_whole(self, Venue venue, fh_slot *slot, const fh_event *event, uint16_t session, uint64_t ts_recv_ns) noexcept nogil
    cdef void book_delta(self, Venue venue, fh_slot *slot, const fh_event *event, uint16_t session, uint64_t ts_recv_ns) noexcept nogil
    cdef bint line_ahead(self, fh_slot *slot, const fh_event *event, uint16_t session) noexcept nogil
    cdef void apply(self, fh_slot *slot, const fh_event *event) noexcept nogil
    cdef void apply_side(self, fh_slot *slot, const fh_change *change) noexcept nogil
    cdef void truncate(self, fh_slot *slot) noexcept nogil
    cdef int check(self, Venue venue, fh_slot *slot, const fh_event *event) noexcept nogil
    cdef void broken(self, fh_slot *slot, uint64_t a, uint64_t b, uint16_t session, uint64_t ts_recv_ns, bint notice) noexcept nogil
    cdef void live(self, fh_slot *slot, uint16_t session, uint64_t ts_recv_ns, bint parts) noexcept nogil
    cdef void put_delta(self, fh_slot *slot, const fh_event *event, uint16_t session, uint64_t ts_recv_ns) noexcept nogil
    cdef bint put_book(self, fh_slot *slot, uint8_t flags, uint16_t session, uint64_t ts_recv_ns) noexcept nogil
    cdef void put_level(self, fh_slot *slot, const fh_change *change, uint8_t flags, uint16_t session, uint64_t ts_recv_ns) noexcept nogil
    cdef void put_touch(self, fh_slot *slot, bint always, uint16_t session, uint64_t ts_recv_ns) noexcept nogil
    cdef void put_status(self, uint32_t instrument, uint32_t code, uint32_t detail, uint64_t a, uint64_t b, uint64_t c,
                         uint16_t session, uint64_t ts_recv_ns) noexcept nogil
    cdef void notice(self, fh_slot *slot, uint32_t channel, int code) noexcept nogil
    cdef void touch_row(self, fh_slot *slot) noexcept nogil
    cdef void put_rows(self) noexcept nogil
    cdef void put_row(self, fh_slot *slot) noexcept nogil
    cdef void put_clock(self, uint64_t now_mono_ns) noexcept nogil
    cdef bint hold_back(self, fh_slot *slot, const fh_event *event, uint16_t session, uint64_t ts_recv_ns) noexcept nogil
    cdef void pending_drop(self, fh_slot *slot) noexcept nogil
    cdef void pending_pop(self, fh_slot *slot) noexcept nogil
    cdef int sync(self, Venue venue, fh_slot *slot, const fh_event *event, uint64_t ts_recv_ns) noexcept nogil
    cdef fh_slot *known(self, Venue venue, uint32_t instrument) noexcept nogil
    cdef bint table(self, fh_table *table, int dir_fd, const char *name, uint64_t magic, uint32_t row_size) except -1
    cdef void resync_told(self, fh_slot *slot)
    cdef void stream_lost(self, fh_slot *slot, int index, uint16_t session, uint64_t now)
    cdef void resumed(self, fh_slot *slot, int index) noexcept
    cdef fh_slot *slot_at(self, instrument_id) except NULL
    cdef const char *copied(self, bytes data) except NULL
