from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from feedhandler._cext cimport fh_batch, fh_counters, fh_instrument, fh_state_row, fh_writer
from feedhandler.venue cimport Venue

# What the publisher tells the control plane, per (instrument, channel); drained with Publisher.notices().
cdef enum:
    NOTICE_FIRST_DATA = 1   # first event since the stream was (re)subscribed
    NOTICE_GAP = 2          # the book's chain broke (a: expected, b: received) or its checksum failed (b: 0)
    NOTICE_LIVE = 3         # the book is in sync
    NOTICE_AHEAD = 4        # the REST snapshot is older than the first held-back change: fetch another
    NOTICE_EXPONENT = 5     # exponents of the instrument were lowered (a, b: new price and size exponent, as int)
    NOTICE_PENDING_FULL = 6 # changes held back for a snapshot overflowed and were dropped: start the sync again
