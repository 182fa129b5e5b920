/* SPDX-License-Identifier: Apache-2.0
 * fh_decimal.h: decimal text to an int64 mantissa and a count of fraction digits, exactly or flagged.
 *
 * "0.05100" is mantissa 5100 with 5 digits. Exponents ("1.1e-7", "2.2e3") and a sign are accepted.
 * A text that int64 cannot hold is never rounded in silence: flags say FH_INEXACT or FH_OVERFLOW
 * (mantissa FH_UNDEFINED). Pure functions, no state. */
#ifndef FH_DECIMAL_H
#define FH_DECIMAL_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "fh_error.h"
#include "include/feedhandler.h"

#define FH_DIGITS_MAX 18 /* 10^18 is the largest power of ten an int64 holds */
#define FH_DECIMAL_DIGITS_MAX 40 /* of a parsed number: beyond, 19 digits are less than half of 10^-18 and so 0, FH_INEXACT */

/* 10^0 to 10^19. */
extern const uint64_t fh_power_of_ten[20];

typedef struct fh_decimal {
    int64_t mantissa;
    int16_t digits;   /* fraction digits as written, trailing zeros included; 0 to FH_DECIMAL_DIGITS_MAX */
    uint16_t flags;   /* 0, FH_INEXACT or FH_OVERFLOW */
} fh_decimal;

/* Parse exactly size bytes as one JSON number. FH_OK or FH_ERROR_MALFORMED. Digits that int64 has no room for are
 * cut off: zeros behind the dot exactly, others with FH_INEXACT, so that fh_decimal_rescale() still rounds rightly.
 * What is above INT64_MAX without its fraction is FH_OVERFLOW. "-0" is 0. */
int fh_decimal_parse(const char *text, size_t size, fh_decimal *decimal);

/* Mantissa of decimal at 10^-digits. Sets FH_INEXACT in *flags (rounded half to even) where a non-zero
 * digit is lost, FH_OVERFLOW (answer FH_UNDEFINED) where int64 is too small. A number that parsing cut off at just
 * these digits stays cut off, not rounded. */
int64_t fh_decimal_rescale(const fh_decimal *decimal, int digits, uint16_t *flags);

/* Inverses of 5^0 to 5^18 modulo 2^64. */
extern const uint64_t fh_inverse_of_five[19];
/* UINT64_MAX / 10^0 to 10^18. */
extern const uint64_t fh_quotient_max[19];

/* mantissa / 10^count (0 to 18) where that leaves no rest. False: a digit other than 0 would go, or the number is negative. Without a
 * division: times the inverse of 5^count, turned right by count bits, is the quotient where there is no rest and above every quotient
 * where there is one. Venues that write eight decimals whatever the tick ("2683.80000000") pass here four times a message. */
static inline bool fh_decimal_drop_zeros(int64_t mantissa, int count, int64_t *out)
{
    uint64_t product = (uint64_t)mantissa * fh_inverse_of_five[count];
    uint64_t quotient = product >> count | product << (-count & 63);
    *out = (int64_t)quotient;
    return mantissa >= 0 && quotient <= fh_quotient_max[count];
}

/* Fewest fraction digits that hold decimal exactly: trailing zeros do not count. */
int fh_decimal_digits_needed(const fh_decimal *decimal);

/* Nearest double; NaN of an overflow or of a number that is absent (digits below 0). For statistics, never for prices. */
double fh_decimal_double(const fh_decimal *decimal);

/* Text of mantissa * 10^-digits as a canonical decimal (no exponent, no trailing zeros, no trailing
 * point). buffer holds at least 48 bytes; answers the size, without a NUL. */
size_t fh_decimal_format(int64_t mantissa, int digits, char *buffer);

#endif
