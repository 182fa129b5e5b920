from libc.stdint cimport uint32_t
from feedhandler._cext cimport fh_batch, fh_chain, fh_event, fh_instrument, fh_symbols

# The three families. A futures event names its own in "st" with these numbers.
cdef enum:
    BINANCE_SPOT = 0
    BINANCE_USDM = 1
    BINANCE_COINM = 2

cdef int binance_decode(const fh_symbols *symbols, const fh_instrument *rows, int family, const char *payload,
                        size_t size, fh_batch *batch) noexcept nogil
cdef int binance_decode_snapshot(const fh_instrument *rows, uint32_t instrument, const char *body, size_t size,
                                 fh_batch *batch) noexcept nogil
cdef int binance_chain_spot(fh_chain *chain, const fh_event *event) noexcept nogil
cdef int binance_chain_futures(fh_chain *chain, const fh_event *event) noexcept nogil
