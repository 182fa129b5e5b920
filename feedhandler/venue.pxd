from libc.stdint cimport int8_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy
from feedhandler._cext cimport (fh_batch, fh_batch_price, fh_book, fh_chain, fh_change, fh_decimal, fh_decimal_double, fh_decimal_rescale,
                                fh_event, fh_instrument, fh_symbols, FH_OK, FH_OVERFLOW, FH_UNDEFINED)


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


# Rules that more than one venue follows.

cdef inline int64_t rounded(fh_event *event, const fh_decimal *value, int digits) noexcept nogil:
    """A number for display at these digits: rounded and flagged where it has more."""
    cdef uint16_t flags = value.flags
    cdef int64_t mantissa
    if value.digits < 0:
        return FH_UNDEFINED
    mantissa = fh_decimal_rescale(value, digits, &flags)
    event.flags |= <uint8_t>flags
    return mantissa


cdef inline void statistic(fh_event *event, int word, const fh_decimal *value) noexcept nogil:
    """A turnover or an average into a word of the body: a double, NaN where it is absent (digits -1) or too large."""
    cdef double real = fh_decimal_double(value)
    memcpy(&event.body.word[word], &real, sizeof(real))
    if value.digits >= 0:
        event.flags |= <uint8_t>(value.flags & FH_OVERFLOW)


cdef inline void no_statistic(fh_event *event, int word) noexcept nogil:
    cdef fh_decimal absent
    absent.mantissa, absent.digits, absent.flags = 0, -1, 0
    statistic(event, word, &absent)


cdef inline int price_or_none(fh_batch *batch, fh_event *event, const fh_instrument *row, const fh_decimal *value,
                              int64_t *out) noexcept nogil:
    """fh_batch_price() of a number that may be absent (digits -1): FH_UNDEFINED then."""
    if value.digits < 0:
        out[0] = FH_UNDEFINED
        return FH_OK
    return fh_batch_price(batch, event, row, value, out)


cdef inline void reverse(fh_change *changes, uint32_t begin, uint32_t end) noexcept nogil:
    cdef fh_change held
    while begin + 1 < end:
        end -= 1
        held = changes[begin]
        changes[begin] = changes[end]
        changes[end] = held
        begin += 1


cdef inline void bids_first(fh_batch *batch, uint32_t begin, uint32_t bids) noexcept nogil:
    """Bring the run of bids that starts at `bids` before the asks at `begin`: a book event has bids first."""
    cdef uint32_t end = batch.change_count
    if begin < bids < end:
        reverse(batch.changes, begin, bids)
        reverse(batch.changes, bids, end)
        reverse(batch.changes, begin, end)
