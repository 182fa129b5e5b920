/* SPDX-License-Identifier: Apache-2.0
 * fh_scan.h: wide looks at text: where a number, a string or a run of digits ends. Used by fh_json and fh_batch.
 *
 * Pure functions over text with at least FH_JSON_PAD readable bytes behind it. They do not know where the text
 * ends: a caller compares what it got with its own end, and takes its slow, bounded path when that lies beyond.
 * SSE2 on x86-64 (every such machine has it), words of 8 bytes elsewhere or with -DFH_PORTABLE; both find the same.
 */
#ifndef FH_SCAN_H
#define FH_SCAN_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include "fh_decimal.h"

#if defined(__SSE2__) && !defined(FH_PORTABLE)
#define FH_SCAN_SSE2 1
#include <emmintrin.h>
#else
#define FH_SCAN_SSE2 0
#endif

#define FH_LIKELY(test) __builtin_expect(!!(test), 1)
#define FH_UNLIKELY(test) __builtin_expect(!!(test), 0)

/* Keep a pointer moved under a condition a matter of a predicted branch: as a conditional move it would put the load of
 * the condition into the chain from one token to the next, which is what decoding time is made of. */
#define FH_BRANCH(pointer) __asm__("" : "+r"(pointer))

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the first byte of a text is the lowest of a word");

static inline uint64_t fh_load_u64(const char *at)
{
    uint64_t word;
    memcpy(&word, at, sizeof word);
    return word;
}

/* Value of size digits (1 to 8) at `at`. The shift drops what lies behind and makes the missing digits zeros;
 * then neighbours are joined: 1 digit to 2 (10 * 2^8 + 1), 2 to 4 (100 * 2^16 + 1), 4 to 8 (10^4 * 2^32 + 1). */
static inline uint64_t fh_scan_digits8(const char *at, unsigned size)
{
    uint64_t word = fh_load_u64(at) << (64 - 8 * size);
    word = ((word & 0x0f0f0f0f0f0f0f0full) * 2561) >> 8;
    word = ((word & 0x00ff00ff00ff00ffull) * 6553601) >> 16;
    return ((word & 0x0000ffff0000ffffull) * 42949672960001ull) >> 32;
}

/* The same of size digits (1 to 8) with a dot behind the first `whole` of them (fewer than size): the bytes behind it close up. */
static inline uint64_t fh_scan_dotted8(const char *at, unsigned whole, unsigned size)
{
    uint64_t before = ((uint64_t)1 << 8 * whole) - 1;
    uint64_t word = ((fh_load_u64(at) & before) | (fh_load_u64(at + 1) & ~before)) << (64 - 8 * size);
    word = ((word & 0x0f0f0f0f0f0f0f0full) * 2561) >> 8;
    word = ((word & 0x00ff00ff00ff00ffull) * 6553601) >> 16;
    return ((word & 0x0000ffff0000ffffull) * 42949672960001ull) >> 32;
}

/* The same for 1 to 16 digits. */
static inline uint64_t fh_scan_digits16(const char *at, unsigned size)
{
    if (FH_LIKELY(size <= 8)) return fh_scan_digits8(at, size);
    return fh_scan_digits8(at, size - 8) * 100000000u + fh_scan_digits8(at + size - 8, 8);
}

#if FH_SCAN_SSE2

/* Bit n: byte n of 16 is no digit. Digits become the ten smallest signed bytes. */
static inline uint32_t fh_scan_others(const char *at)
{
    __m128i bytes = _mm_add_epi8(_mm_loadu_si128((const __m128i *)at), _mm_set1_epi8((char)(0x80 - '0')));
    return (uint32_t)_mm_movemask_epi8(_mm_cmpgt_epi8(bytes, _mm_set1_epi8(-128 + 9)));
}

/* Look at "digits" or "digits.digits": how many digits stand before the dot, and the size of it all.
 * False where it does not end within the window, or there is no digit. */
static inline bool fh_scan_number(const char *at, unsigned *whole, unsigned *size)
{
    uint32_t others = fh_scan_others(at);
    if (FH_UNLIKELY(!others)) return false;
    *whole = *size = (unsigned)__builtin_ctz(others);
    if (at[*whole] != '.') return *whole != 0;
    others &= others - 1;
    if (FH_UNLIKELY(!others)) return false;
    *size = (unsigned)__builtin_ctz(others);
    return *whole != 0 && *size > *whole + 1;
}

/* Whether 13 digits and no more stand here, as in every epoch millisecond from 2001 to 2286. */
static inline bool fh_scan_is_13_digits(const char *at) { return (fh_scan_others(at) & 0x3fff) == 0x2000; }

/* Bits of the quotes in 16 bytes, and of the bytes a plain string does not have: backslash, control character. */
static inline uint32_t fh_scan_quotes(const char *at, uint32_t *odd)
{
    __m128i bytes = _mm_loadu_si128((const __m128i *)at);
    __m128i slash = _mm_cmpeq_epi8(bytes, _mm_set1_epi8('\\'));
    __m128i control = _mm_cmpeq_epi8(_mm_min_epu8(bytes, _mm_set1_epi8(0x1f)), bytes);
    *odd = (uint32_t)_mm_movemask_epi8(_mm_or_si128(slash, control));
    return (uint32_t)_mm_movemask_epi8(_mm_cmpeq_epi8(bytes, _mm_set1_epi8('"')));
}

/* Where the next quote, backslash or control character is: 0 to 15, or 16 for "further on". */
static inline unsigned fh_scan_special(const char *at)
{
    uint32_t odd, quotes = fh_scan_quotes(at, &odd);
    return (unsigned)__builtin_ctz(quotes | odd | 0x10000);
}

/* Size of a plain string whose first byte is at `at`. False where it does not end within 16 bytes, or is not plain. */
static inline bool fh_scan_string(const char *at, unsigned *size)
{
    uint32_t odd, quotes = fh_scan_quotes(at, &odd);
    if (FH_UNLIKELY(!quotes || (odd & (quotes ^ (quotes - 1))))) return false;
    *size = (unsigned)__builtin_ctz(quotes);
    return true;
}

/* The same within 32 bytes. */
static inline bool fh_scan_string32(const char *at, unsigned *size)
{
    uint32_t odd, more, quotes = fh_scan_quotes(at, &odd);
    if (FH_UNLIKELY(!quotes)) {
        quotes = fh_scan_quotes(at + 16, &more) << 16;
        odd |= more << 16;
    }
    if (FH_UNLIKELY(!quotes || (odd & (quotes ^ (quotes - 1))))) return false;
    *size = (unsigned)__builtin_ctz(quotes);
    return true;
}

#else

#define FH_SCAN_BYTES(byte) (0x0101010101010101ull * (byte))

/* How many of the 8 bytes of a word, from the first, are digits. A byte above 9 carries into later bytes only,
 * so the lowest mark is right. */
static inline unsigned fh_scan_leading(const char *at)
{
    uint64_t bytes = fh_load_u64(at) ^ FH_SCAN_BYTES('0');
    uint64_t other = ((bytes + FH_SCAN_BYTES(0x76)) | bytes) & FH_SCAN_BYTES(0x80);
    return other ? (unsigned)__builtin_ctzll(other) / 8 : 8;
}

static inline unsigned fh_scan_leading16(const char *at)
{
    unsigned size = fh_scan_leading(at);
    return size < 8 ? size : 8 + fh_scan_leading(at + 8);
}

static inline bool fh_scan_number(const char *at, unsigned *whole, unsigned *size)
{
    *whole = *size = fh_scan_leading16(at);
    if (*whole == 0 || *whole == 16) return false;
    if (at[*whole] != '.') return true;
    unsigned fraction = fh_scan_leading16(at + *whole + 1);
    *size = *whole + 1 + fraction;
    return fraction != 0 && fraction != 16;
}

static inline bool fh_scan_is_13_digits(const char *at) { return fh_scan_leading16(at) == 13; }

/* Marks the bytes of a word that are zero; a mark above the lowest one may be false. */
static inline uint64_t fh_scan_zeros(uint64_t word)
{
    return (word - FH_SCAN_BYTES(1)) & ~word & FH_SCAN_BYTES(0x80);
}

static inline unsigned fh_scan_special8(const char *at)
{
    uint64_t word = fh_load_u64(at);
    uint64_t mask = fh_scan_zeros(word ^ FH_SCAN_BYTES('"')) | fh_scan_zeros(word ^ FH_SCAN_BYTES('\\'))
                  | fh_scan_zeros(word & FH_SCAN_BYTES(0xe0));
    return mask ? (unsigned)__builtin_ctzll(mask) / 8 : 8;
}

static inline unsigned fh_scan_special(const char *at)
{
    unsigned size = fh_scan_special8(at);
    return size < 8 ? size : 8 + fh_scan_special8(at + 8);
}

static inline bool fh_scan_string(const char *at, unsigned *size)
{
    *size = fh_scan_special(at);
    return *size < 16 && at[*size] == '"';
}

static inline bool fh_scan_string32(const char *at, unsigned *size)
{
    *size = fh_scan_special(at);
    if (*size == 16) *size += fh_scan_special(at + 16);
    return *size < 32 && at[*size] == '"';
}

#endif

/* The decimal that fh_scan_number() saw. False (take the slow path) with more than 18 digits or a leading zero. */
static inline bool fh_scan_decimal(const char *at, unsigned whole, unsigned size, fh_decimal *decimal)
{
    unsigned fraction = size > whole ? size - whole - 1 : 0;
    uint64_t mantissa;
    if (FH_UNLIKELY(*at == '0' && whole > 1)) return false;
    if (FH_LIKELY(fraction && whole + fraction <= 8)) {
        mantissa = fh_scan_dotted8(at, whole, whole + fraction);
    } else {
        if (FH_UNLIKELY(whole + fraction > FH_DIGITS_MAX)) return false;
        mantissa = fh_scan_digits16(at, whole);
        if (fraction) mantissa = mantissa * fh_power_of_ten[fraction] + fh_scan_digits16(at + whole + 1, fraction);
    }
    decimal->mantissa = (int64_t)mantissa;
    decimal->digits = (int16_t)fraction;
    decimal->flags = 0;
    return true;
}

#endif
