from libc.stdint cimport int8_t, uint32_t, uint64_t
from feedhandler._cext cimport fh_batch, fh_book, fh_chain, fh_event, fh_instrument, fh_symbols


cdef class Venue:
    cdef fh_symbols *symbols        # venue symbol -> row; owned
    cdef fh_instrument *rows        # private rows of this process, indexed by instrument id; owned
    cdef readonly uint32_t row_max

    # Data plane: once per frame, no Python object.
    cdef int decode(self, const char *payload, size_t size, uint64_t ts_recv_ns,
                    fh_batch *batch) noexcept nogil
    cdef int decode_snapshot(self, const char *body, size_t size, uint32_t instrument,
                             uint64_t ts_recv_ns, fh_batch *batch) noexcept nogil
    cdef int chain(self, fh_chain *chain, const fh_event *event) noexcept nogil
    cdef int checksum(self, const fh_book *book, const fh_event *event,
                      const fh_instrument *row) noexcept nogil
