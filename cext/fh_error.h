/* SPDX-License-Identifier: Apache-2.0
 * fh_error.h: what a core function answers instead of a count. Every value names a next state. */
#ifndef FH_ERROR_H
#define FH_ERROR_H

typedef enum fh_error {
    FH_OK = 0,
    FH_ERROR_MALFORMED = -1,  /* not the JSON we accept, or cut short: count the frame, drop it */
    FH_ERROR_UNKNOWN = -2,    /* well-formed, but no kind we know: count it by name, drop it */
    FH_ERROR_SYMBOL = -3,     /* a symbol nobody subscribed or listed: count it, drop it */
    FH_ERROR_FULL = -4,       /* the batch cannot hold this message: count it, resync its stream */
    FH_ERROR_DIGITS = -5,     /* a number has more digits than the exponent holds: raise it, decode again */
    FH_ERROR_MISSING = -6,    /* a field that the kind needs is absent: count the frame, drop it */
    FH_ERROR_RANGE = -7,      /* a number is outside what its field can hold: count the frame, drop it */
    FH_ERROR_DEPTH = -8,      /* nested deeper than the cap: as malformed */
    FH_ERROR_SYSTEM = -9      /* a system call failed; errno says how */
} fh_error;

#endif
