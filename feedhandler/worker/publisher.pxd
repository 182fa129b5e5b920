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

# What a session is to a stream.
cdef enum:
    LINE_JOINING = 1        # delivers, but has not met what is published: what it brings ahead of that is held
    LINE_MET = 2            # alone, from now on, it would lose nothing
    LINE_DROPPED = 3        # was told to unsubscribe: what still arrives from it is a duplicate

# What becomes of an event that one of several lines brought.
cdef enum:
    FATE_DUPLICATE = 0
    FATE_PUBLISH = 1
    FATE_HOLD = 2
    FATE_BROKEN = 3         # it broke the book: there is nothing left to do

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

# Held events, oldest first: a list in the pool `pending`.
ctypedef struct fh_queue:
    uint32_t first, last, count

# One session that delivered a stream since it came up.
ctypedef struct fh_line:
    uint64_t first          # JOINING: number (or time) at which it joins; met once that much is published. 0: not known yet
    uint64_t since_ns       # receive time of its last event
    uint64_t ts_ns          # of its last event without a number: these are told apart by time,
    uint32_t nth            # and by their place among those of one time
    fh_queue held           # what it brought ahead of what is published
    uint16_t session
    uint8_t state           # LINE_*
    uint8_t timed           # 1: `first` is a time
    uint8_t exact           # 1: nth counts from the first event of ts_ns
    uint8_t fate            # of its last numbered event: one without a number in between goes with it

# Messages of a stream within windows of 10 ms, 100 ms and 1 s. A closed window is counted under its number of messages, four buckets
# to a power of two, by as many as it had: half of all messages came in windows up to the median's bucket.
ctypedef struct fh_load:
    uint64_t window         # number of the 10 ms window at hand
    uint32_t count[3]       # messages in the windows at hand
    uint32_t bucket[3][72]

# One (instrument, channel).
ctypedef struct fh_stream:
    uint64_t last_ns        # receive time of the last message
    uint64_t messages
    uint64_t gaps
    uint64_t sequence       # highest venue sequence published
    uint64_t seen           # bit n: sequence - n was published
    uint64_t frame          # number of the frame that set sequence: its further events are no duplicates
    uint64_t ts_ns          # highest time published of events without a number,
    uint32_t nth            # and how many of that time
    uint32_t usual          # session + 1 of the one line that feeds it while there is nothing to arbitrate; 0: line_event()
    uint32_t feeder         # session + 1 of the line that fed an event without a number last; 0: none
    uint64_t records        # published of it
    fh_load *load
    uint64_t floor          # private: highest number (or time) that is not held any more, or else that of the first one held
    uint64_t floor_id       # the same as a trade id
    uint64_t told_id        # highest trade id that a dead owner published, until we are past it; bit n of told_seen: told_id - n too
    uint64_t told_seen
    uint32_t kinds          # private: bit n: an event of kind n came on it
    uint32_t old_run        # consecutive events older than the window: the venue may have started again
    uint8_t line_count      # sessions in line[]
    uint8_t lines           # add_stream() minus remove_stream()
    uint8_t removed         # 1: let go of; what still arrives is dropped
    uint8_t first_pending   # 1: NOTICE_FIRST_DATA still to come
    uint8_t gap_before      # 1: the next record says FH_GAP_BEFORE
    uint8_t notices         # bit n: notice n waits for the control plane
    uint8_t watched         # 1: its events never go the short way: private, backed, or behind a dead owner
    uint8_t floor_open      # private: 1: what comes next is the first one held; 2: its connection was lost before
    uint8_t floor_first     # private: 1: that one is the floor, nothing was let go of
    fh_line line[4]

# An event held: by a line that is ahead, until a REST snapshot arrives, or of a private instrument for PRIVATE_HOLD_NS.
ctypedef struct fh_pending:
    fh_event event
    uint64_t ts_recv_ns
    uint64_t frame          # number of its frame
    uint32_t next           # of its queue, or of the free list; NONE at the end of that
    uint32_t run            # first run of its changes
    uint32_t older, newer   # private: the events of all instruments by age; NONE at both ends
    uint32_t nth            # place among the events of its time
    uint16_t session

# When a numbered event came first, for the line that brings it second.
ctypedef struct fh_arrival:
    uint64_t number, ts_recv_ns
    uint32_t key            # instrument and channel, + 1

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
    uint64_t sequence       # of the levels in book: that of their records
    uint64_t changed        # private: of the last message that changed a level; those behind it leave no record anywhere
    uint64_t gap_a, gap_b
    uint64_t silent_until   # a dead owner published the book up to here: ours follows without records; 0: no
    fh_queue fifo           # private: what was not published, oldest first
    uint32_t instrument
    uint32_t depth          # levels the venue keeps for us; 0: unlimited
    uint8_t late            # 1: what comes was held back by the venue or by us; the row stays STALE
    uint16_t book_session   # the session whose snapshot the book stands on
    uint8_t book_state, seed
    uint8_t known           # 1: exponents taken from the venue's row
    uint8_t owned           # 1: this worker writes the row in `state`
    uint8_t chained         # 1: the venue numbers or checksums the messages of this book
    uint8_t private         # 1: held without being published: a hand-over in its first half, or a standby
    uint8_t quiet           # 1: private or silent_until: a book message is not just published
    uint8_t foreign         # 1: readers may hold levels of a dead owner's book that ours has not: every change is told
    uint8_t touch_due       # 1: the dead owner told a whole book, but not its touch
    uint8_t reset_due       # 1: readers wait for the whole book, which is not yet where a dead owner left it
    uint8_t backed          # 1: a standby elsewhere needs to know which quote was the last one
    uint8_t quote_turn      # which of the two quote words of the row is the newer one
    uint8_t l1_dirty, book_dirty, noticed
    fh_stream stream[13]


@cython.final
cdef class Publisher:
    cdef fh_writer writer
    cdef fh_batch batch
    cdef fh_counters *counters
    cdef fh_table state, readers
    cdef fh_slot *slots             # by instrument id
    cdef fh_pending *pending        # pool of held events
    cdef fh_run *runs               # pool of their changes
    cdef fh_change *recalled        # changes of the held message at work
    cdef fh_arrival *arrivals       # of streams with two lines, by hash: an older one is overwritten
    cdef fh_change *out_bid         # levels one message changed, collected before its checksum is known
    cdef fh_change *out_ask
    cdef uint32_t *dirty            # instruments whose row is to be written
    cdef uint32_t *noticed          # instruments with notices
    cdef char *padded               # copy of what Python hands in, with the padding a decoder may touch
    cdef size_t padded_size
    cdef uint32_t out_bid_count, out_ask_count, dirty_count, pending_free, pending_used, run_free, run_used
    cdef uint32_t age_first, age_last, age_count    # events of private instruments, oldest first
    cdef set interrupted            # ids that our dead predecessor published, until the shard was taken over
    cdef bint resumed_any
    cdef dict venues                # instrument id: its Venue
    cdef dict handovers             # instrument id: what let_go() answered
    cdef dict inherited             # id: exponents that a resumed ring's readers know, until the instrument is added
    cdef uint64_t frame_count, flushed, recv_first_ns, clock_ns, clock_offset_ns, part_max, hold_ns
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
    cdef void lone_event(self, Venue venue, fh_slot *slot, fh_stream *stream, const fh_event *event, uint16_t session,
                         uint64_t ts_recv_ns) noexcept nogil
    cdef bint arrived(self, fh_stream *stream, const fh_event *event) noexcept nogil
    cdef void pass_on(self, fh_slot *slot, fh_stream *stream, const fh_event *event, uint16_t session, uint64_t ts_recv_ns) noexcept nogil
    cdef void note_quote(self, fh_slot *slot, uint64_t sequence, uint32_t ahead) noexcept nogil
    cdef void forget_quote(self, fh_slot *slot) noexcept nogil
    cdef void plain(self, fh_slot *slot, fh_stream *stream, const fh_event *event, uint16_t session, uint64_t ts_recv_ns) noexcept nogil
    cdef void line_event(self, Venue venue, fh_slot *slot, fh_stream *stream, const fh_event *event, uint16_t session,
                         uint64_t ts_recv_ns) noexcept nogil
    cdef fh_line *line_at(self, fh_slot *slot, fh_stream *stream, uint16_t session) noexcept nogil
    cdef void line_forget(self, fh_slot *slot, fh_stream *stream, uint16_t session) noexcept nogil
    cdef void lines_forget(self, fh_slot *slot, fh_stream *stream, bint dropped) noexcept nogil
    cdef void rejoin(self, fh_slot *slot, fh_line *line) noexcept nogil
    cdef int plain_fate(self, fh_stream *stream, fh_line *line, const fh_event *event) noexcept nogil
    cdef void count_line(self, fh_stream *stream, uint32_t key, uint64_t number, int fate, uint16_t session, uint64_t ts_recv_ns) noexcept nogil
    cdef void joiners(self, Venue venue, fh_slot *slot, fh_stream *stream) noexcept nogil
    cdef void release(self, Venue venue, fh_slot *slot, fh_stream *stream, fh_line *line) noexcept nogil
    cdef bint put_held(self, Venue venue, fh_slot *slot, fh_stream *stream, uint32_t index) noexcept nogil
    cdef void line_book(self, Venue venue, fh_slot *slot, fh_stream *stream, const fh_event *event, uint16_t session,
                        uint64_t ts_recv_ns) noexcept nogil
    cdef int chain_fate(self, Venue venue, fh_slot *slot, fh_stream *stream, fh_line *line, const fh_event *event,
                        uint64_t ts_recv_ns) noexcept nogil
    cdef int whole_fate(self, fh_slot *slot, fh_stream *stream, fh_line *line, const fh_event *event) noexcept nogil
    cdef int timed_book_fate(self, fh_slot *slot, fh_stream *stream, fh_line *line, const fh_event *event,
                             const fh_change *changes) noexcept nogil
    cdef bint drain(self, Venue venue, fh_slot *slot, bint silent) noexcept nogil
    cdef bint drain_one(self, Venue venue, fh_slot *slot, fh_line *line, bint silent, bint *any) noexcept nogil
    cdef void book_message(self, Venue venue, fh_slot *slot, fh_stream *stream, const fh_event *event, uint16_t session,
                           uint64_t ts_recv_ns) noexcept nogil
    cdef void book_whole(self, Venue venue, fh_slot *slot, const fh_event *event, const fh_change *changes, uint16_t session,
                         uint64_t ts_recv_ns) noexcept nogil
    cdef void seeded(self, fh_slot *slot, const fh_event *event, uint16_t session) noexcept nogil
    cdef void book_delta(self, Venue venue, fh_slot *slot, const fh_event *event, const fh_change *changes, uint16_t session,
                         uint64_t ts_recv_ns) noexcept nogil
    cdef void book_change(self, Venue venue, fh_slot *slot, const fh_event *event, const fh_change *changes, uint16_t session,
                          uint64_t ts_recv_ns) noexcept nogil
    cdef bint applied(self, Venue venue, fh_slot *slot, const fh_event *event, const fh_change *changes, uint16_t session,
                      uint64_t ts_recv_ns) noexcept nogil
    cdef void change_quiet(self, Venue venue, fh_slot *slot, const fh_event *event, const fh_change *changes, uint16_t session,
                           uint64_t ts_recv_ns) noexcept nogil
    cdef void whole_quiet(self, Venue venue, fh_slot *slot, const fh_event *event, const fh_change *changes, uint16_t session,
                          uint64_t ts_recv_ns) noexcept nogil
    cdef void silent_end(self, fh_slot *slot, uint16_t session, uint64_t ts_recv_ns) noexcept nogil
    cdef void apply(self, fh_slot *slot, const fh_event *event, const fh_change *changes) noexcept nogil
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
    cdef bint keep(self, fh_line *line, const fh_event *event, const fh_change *changes, uint16_t session,
                   uint64_t ts_recv_ns) noexcept nogil
    cdef void hold_line(self, fh_slot *slot, fh_line *line, const fh_event *event, const fh_change *changes, uint16_t session,
                        uint64_t ts_recv_ns) noexcept nogil
    cdef uint32_t take(self, const fh_event *event, const fh_change *changes, uint16_t session, uint64_t ts_recv_ns) noexcept nogil
    cdef void give(self, uint32_t index) noexcept nogil
    cdef uint32_t pop(self, fh_queue *queue) noexcept nogil
    cdef const fh_change *recall(self, uint32_t index) noexcept nogil
    cdef void line_empty(self, fh_slot *slot, fh_line *line) noexcept nogil
    cdef void pending_drop(self, fh_slot *slot) noexcept nogil
    cdef void held_drop(self, fh_slot *slot) noexcept nogil
    cdef void enlist(self, fh_slot *slot, fh_stream *stream, const fh_event *event, const fh_change *changes, uint16_t session,
                     uint64_t ts_recv_ns) noexcept nogil
    cdef void enlist_held(self, fh_slot *slot, fh_stream *stream, uint32_t index) noexcept nogil
    cdef void unage(self, uint32_t index) noexcept nogil
    cdef void evict(self, fh_slot *slot, bint check) noexcept nogil
    cdef bint wrong(self, fh_slot *slot, const fh_event *event) noexcept with gil
    cdef void fifo_drop(self, fh_slot *slot, int channel) noexcept nogil
    cdef int sync_private(self, Venue venue, fh_slot *slot, const fh_event *event) noexcept nogil
    cdef int sync(self, Venue venue, fh_slot *slot, const fh_event *event, uint64_t ts_recv_ns) noexcept nogil
    cdef fh_slot *known(self, Venue venue, uint32_t instrument) noexcept nogil
    cdef bint table(self, fh_table *table, int dir_fd, const char *name, uint64_t magic, uint32_t row_size) except -1
    cdef void resync_told(self, fh_slot *slot)
    cdef void stream_lost(self, fh_slot *slot, int index, uint16_t session, uint64_t now, bint notice)
    cdef void line_gone(self, fh_slot *slot, int index, uint16_t session, uint64_t now)
    cdef Venue venue_of(self, fh_slot *slot)
    cdef void turned(self, fh_slot *slot, bint private) noexcept
    cdef fh_state_row *row_of(self, fh_slot *slot) noexcept nogil
    cdef dict handed_streams(self, fh_slot *slot)
    cdef object handed_book(self, fh_slot *slot)
    cdef void row_taken(self, Venue venue, fh_slot *slot) noexcept
    cdef bint agree(self, Venue venue, fh_slot *slot, int price_exponent, int size_exponent) except -1
    cdef stream_over(self, fh_slot *slot, int index, dict handover)
    cdef stream_scanned(self, fh_slot *slot, int index, dict handover)
    cdef void stream_gap(self, fh_slot *slot, int index)
    cdef bint book_over(self, Venue venue, fh_slot *slot, book, int price_power, int size_power) except -1
    cdef book_load(self, fh_slot *slot, dict book, int price_power, int size_power)
    cdef void advance(self, fh_slot *slot) noexcept
    cdef void replay(self, Venue venue, fh_slot *slot, bint own) noexcept
    cdef void replay_book(self, Venue venue, fh_slot *slot, uint32_t index, bint own) noexcept
    cdef void resumed(self, fh_slot *slot, int index) noexcept
    cdef fh_slot *slot_at(self, instrument_id) except NULL
    cdef const char *copied(self, bytes data) except NULL
