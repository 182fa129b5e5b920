/* SPDX-License-Identifier: Apache-2.0 */
#include "fh_decimal.h"
#include <stdbool.h>

const uint64_t fh_power_of_ten[20] = {
    1u, 10u, 100u, 1000u, 10000u, 100000u, 1000000u, 10000000u, 100000000u, 1000000000u, 10000000000u,
    100000000000u, 1000000000000u, 10000000000000u, 100000000000000u, 1000000000000000u, 10000000000000000u,
    100000000000000000u, 1000000000000000000u, 10000000000000000000u
};

const uint64_t fh_inverse_of_five[19] = {
    0x1u, 0xcccccccccccccccdu, 0x8f5c28f5c28f5c29u, 0x1cac083126e978d5u, 0xd288ce703afb7e91u, 0x5d4e8fb00bcbe61du,
    0x790fb65668c26139u, 0xe5032477ae8d46a5u, 0xc767074b22e90e21u, 0x8e47ce423a2e9c6du, 0x4fa7f60d3ed61f49u,
    0xfee64690c913975u, 0x3662e0e1cf503eb1u, 0xa47a2cf9f6433fbdu, 0x54186f653140a659u, 0x7738164770402145u,
    0xe4a4d1417cd9a041u, 0xc75429d9e5c5200du, 0xc1773b91fac10669u
};

const uint64_t fh_quotient_max[19] = {
    18446744073709551615u, 1844674407370955161u, 184467440737095516u, 18446744073709551u, 1844674407370955u,
    184467440737095u, 18446744073709u, 1844674407370u, 184467440737u, 18446744073u, 1844674407u, 184467440u,
    18446744u, 1844674u, 184467u, 18446u, 1844u, 184u, 18u
};

#define EXPONENT_MAX 1000000000000 /* clamp: longer than any text that fits in memory */

/* A number while it is read: mantissa * 10^-digits, and what was cut off. */
typedef struct reading {
    uint64_t mantissa;
    int64_t digits;
    bool negative, inexact, full;
} reading;

static bool is_digit(const char *at, const char *end) { return at < end && (unsigned char)(*at - '0') <= 9; }

/* Take one digit in, or cut it off. Once one digit was cut, no later one fits. */
static void take(reading *number, unsigned digit, bool fraction)
{
    if (!number->full && number->mantissa > ((uint64_t)INT64_MAX - digit) / 10) number->full = true;
    if (!number->full) {
        number->mantissa = number->mantissa * 10 + digit;
        number->digits += fraction;
    } else {
        number->inexact |= digit != 0;
        number->digits -= !fraction;
    }
}

/* "e", an optional sign, digits. Answers where it ends, or NULL. */
static const char *read_exponent(reading *number, const char *at, const char *end)
{
    int64_t exponent = 0;
    bool negative = at < end && *at == '-';
    if (at < end && (*at == '-' || *at == '+')) at++;
    if (!is_digit(at, end)) return NULL;
    for (; is_digit(at, end); at++)
        if (exponent < EXPONENT_MAX) exponent = exponent * 10 + (*at - '0');
    number->digits += negative ? exponent : -exponent;
    return at;
}

/* Answers where the number ends, or NULL if it is none. */
static const char *read_number(reading *number, const char *at, const char *end)
{
    number->negative = at < end && *at == '-';
    at += number->negative;
    if (!is_digit(at, end)) return NULL;
    if (*at == '0' && is_digit(at + 1, end)) return NULL;
    for (; is_digit(at, end); at++) take(number, (unsigned)(*at - '0'), false);
    if (at < end && *at == '.') {
        if (!is_digit(++at, end)) return NULL;
        for (; is_digit(at, end); at++) take(number, (unsigned)(*at - '0'), true);
    }
    if (at < end && (*at | 0x20) == 'e') return read_exponent(number, at + 1, end);
    return at;
}

/* Bring digits into 0 .. FH_DECIMAL_DIGITS_MAX. False on overflow: a cut-off digit would have been needed too. */
static bool settle(reading *number)
{
    if (number->mantissa == 0 && !number->inexact) {
        if (number->digits < 0) number->digits = 0;
        if (number->digits > FH_DIGITS_MAX) number->digits = FH_DIGITS_MAX;
    }
    if (number->digits > FH_DECIMAL_DIGITS_MAX) {
        number->inexact = true;
        number->mantissa = 0;
        number->digits = FH_DIGITS_MAX;
    }
    if (number->digits >= 0) return true;
    if (number->inexact || number->digits < -FH_DIGITS_MAX) return false;
    uint64_t power = fh_power_of_ten[-number->digits];
    if (number->mantissa > INT64_MAX / power) return false;
    number->mantissa *= power;
    number->digits = 0;
    return true;
}

int fh_decimal_parse(const char *text, size_t size, fh_decimal *decimal)
{
    reading number = {0};
    if (read_number(&number, text, text + size) != text + size) return FH_ERROR_MALFORMED;
    if (!settle(&number)) {
        *decimal = (fh_decimal){ .mantissa = FH_UNDEFINED, .flags = FH_OVERFLOW };
        return FH_OK;
    }
    decimal->mantissa = number.negative ? -(int64_t)number.mantissa : (int64_t)number.mantissa;
    decimal->digits = (int16_t)number.digits;
    decimal->flags = number.inexact ? FH_INEXACT : 0;
    return FH_OK;
}

/* Magnitude / 10^drop, half to even. cut: the true magnitude is a little more than the one given. */
static uint64_t round_off(uint64_t magnitude, int drop, bool cut, bool *inexact)
{
    *inexact = magnitude != 0 || cut;
    if (drop > 19) return 0;
    uint64_t power = fh_power_of_ten[drop], kept = magnitude / power, rest = magnitude % power;
    *inexact = rest != 0 || cut;
    uint64_t other = power - rest; /* rest against other: below, at or above the half, with no overflow */
    if (rest > other || (rest == other && (cut || (kept & 1)))) kept++;
    return kept;
}

int64_t fh_decimal_rescale(const fh_decimal *decimal, int digits, uint16_t *flags)
{
    if (decimal->flags & FH_OVERFLOW) {
        *flags |= FH_OVERFLOW;
        return FH_UNDEFINED;
    }
    bool negative = decimal->mantissa < 0, inexact = decimal->flags & FH_INEXACT;
    uint64_t magnitude = negative ? 0 - (uint64_t)decimal->mantissa : (uint64_t)decimal->mantissa;
    int more = digits - decimal->digits;
    if (more < 0) {
        magnitude = round_off(magnitude, -more, inexact, &inexact);
    } else if (more > 0 && magnitude != 0) {
        /* A number that was cut off at int64's edge has no room for one digit more. */
        if (inexact || more > FH_DIGITS_MAX || magnitude > INT64_MAX / fh_power_of_ten[more]) {
            *flags |= FH_OVERFLOW;
            return FH_UNDEFINED;
        }
        magnitude *= fh_power_of_ten[more];
    }
    if (inexact) *flags |= FH_INEXACT;
    return negative ? -(int64_t)magnitude : (int64_t)magnitude;
}

int fh_decimal_digits_needed(const fh_decimal *decimal)
{
    int64_t mantissa = decimal->mantissa;
    int digits = decimal->digits;
    if (mantissa == 0) return 0;
    while (digits > 0 && mantissa % 10 == 0) {
        mantissa /= 10;
        digits--;
    }
    return digits;
}

double fh_decimal_double(const fh_decimal *decimal)
{
    if (decimal->digits < 0 || decimal->flags & FH_OVERFLOW) return __builtin_nan("");
    long double value = decimal->mantissa; /* 64 bits of mantissa on x86: exact, as is every power of ten to 10^27 */
    int digits = decimal->digits;
    for (; digits > FH_DIGITS_MAX; digits -= FH_DIGITS_MAX) value /= fh_power_of_ten[FH_DIGITS_MAX];
    return (double)(value / fh_power_of_ten[digits]);
}

size_t fh_decimal_format(int64_t mantissa, int digits, char *buffer)
{
    char text[48];
    char *at = text + sizeof text, *end = at;
    uint64_t magnitude = mantissa < 0 ? 0 - (uint64_t)mantissa : (uint64_t)mantissa;
    for (; digits > 0 && magnitude % 10 == 0; digits--) {
        if (magnitude == 0) digits = 1;
        magnitude /= 10;
    }
    for (int written = 0; magnitude != 0 || written <= digits; written++) {
        if (written == digits && digits > 0) *--at = '.';
        *--at = (char)('0' + magnitude % 10);
        magnitude /= 10;
    }
    if (mantissa < 0) *--at = '-';
    __builtin_memcpy(buffer, at, (size_t)(end - at));
    return (size_t)(end - at);
}
