/* SPDX-License-Identifier: Apache-2.0 */
#include "fh_book.h"
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include "fh_crc32.h"

_Static_assert(offsetof(fh_level, price) == 0, "count_worse() reads the price at the start of a level");

#define TAIL_SEARCH 8        /* levels from the best that are compared all at once: most changes are near the touch */
#define KRAKEN_DEPTH 10
#define OKX_DEPTH 25
#define NUMBER_SIZE_MAX 48   /* bytes fh_decimal_format() may write */

int fh_book_init(fh_book *book, uint32_t level_max)
{
    *book = (fh_book){ .bid.max = level_max, .ask.max = level_max };
    book->bid.level = calloc(level_max, sizeof(fh_level));
    book->ask.level = calloc(level_max, sizeof(fh_level));
    if (book->bid.level && book->ask.level) return FH_OK;
    fh_book_free(book);
    return FH_ERROR_SYSTEM;
}

void fh_book_free(fh_book *book)
{
    free(book->bid.level);
    free(book->ask.level);
    *book = (fh_book){0};
}

void fh_book_clear(fh_book *book) { book->bid.count = book->ask.count = 0; }

/* Goodness of a price: larger is better. An ask's is ~price, which falls as the price rises. */
static inline int64_t goodness(int64_t price, int64_t flip) { return price ^ flip; }

/* How many levels of the first `count` are worse than wanted, by halves. In bytes and without a branch: the next load waits
 * for one comparison and one conditional move. */
static inline uint32_t count_worse(const fh_level *level, uint32_t count, int64_t wanted, int64_t flip)
{
    const char *bytes = (const char *)level;
    size_t base = 0;
    for (size_t left = count, half; left > 0; left -= half) {
        half = (left + 1) / 2;
        size_t further = base + half * sizeof(fh_level);
        int64_t price;
        memcpy(&price, bytes + further - sizeof(fh_level), sizeof price);
        base = goodness(price, flip) < wanted ? further : base;
    }
    return (uint32_t)(base / sizeof(fh_level));
}

/* First index whose price is at least as good. */
static inline uint32_t lower_bound(const fh_side_array *side, int64_t wanted, int64_t flip)
{
    if (side->count <= TAIL_SEARCH) return count_worse(side->level, side->count, wanted, flip);
    uint32_t index = side->count - TAIL_SEARCH;
    const fh_level *tail = &side->level[index];
    if (goodness(tail[-1].price, flip) >= wanted) return count_worse(side->level, index, wanted, flip);
    for (uint32_t depth = 0; depth < TAIL_SEARCH; depth++) index += goodness(tail[depth].price, flip) < wanted;
    return index;
}

static int remove_level(fh_side_array *side, uint32_t index)
{
    uint32_t behind = side->count - 1 - index;
    memmove(&side->level[index], &side->level[index + 1], behind * sizeof(fh_level));
    side->count--;
    return (int)behind;
}

/* A new price at index. A full side lets its worst level go, or refuses the new one if that is the worst. */
static int insert_level(fh_book *book, fh_side_array *side, uint32_t index, fh_level level)
{
    if (side->count == side->max) {
        book->levels_refused++;
        if (index == 0) return -1;
        remove_level(side, 0);
        index--;
    }
    uint32_t behind = side->count - index;
    memmove(&side->level[index + 1], &side->level[index], behind * sizeof(fh_level));
    side->level[index] = level;
    side->count++;
    return (int)behind;
}

int fh_book_set(fh_book *book, uint8_t side_name, int64_t price, int64_t size)
{
    fh_side_array *side = side_name == FH_BID ? &book->bid : &book->ask;
    int64_t flip = side_name == FH_BID ? 0 : -1;
    if (FH_UNLIKELY(price == FH_UNDEFINED)) {
        book->levels_refused++;
        return -1;
    }
    uint32_t index = lower_bound(side, goodness(price, flip), flip);
    bool present = index < side->count && side->level[index].price == price;
    if (present && size == 0) return remove_level(side, index);
    if (!present && size == 0) {
        book->deletes_absent++;
        return -1;
    }
    if (!present) return insert_level(book, side, index, (fh_level){ price, size });
    if (side->level[index].size == size) return -1;
    side->level[index].size = size;
    return (int)(side->count - 1 - index);
}

static void truncate_side(fh_side_array *side, uint32_t depth)
{
    if (side->count <= depth) return;
    memmove(side->level, &side->level[side->count - depth], depth * sizeof(fh_level));
    side->count = depth;
}

void fh_book_truncate(fh_book *book, uint32_t depth)
{
    truncate_side(&book->bid, depth);
    truncate_side(&book->ask, depth);
}

/* False if a value times its power leaves int64. An undefined size stays undefined; no product becomes FH_UNDEFINED, which
 * is -2^63 and so no multiple of ten. */
static bool side_fits(const fh_side_array *side, int64_t price_power, int64_t size_power)
{
    int64_t product;
    for (uint32_t index = 0; index < side->count; index++) {
        fh_level level = side->level[index];
        if (__builtin_mul_overflow(level.price, price_power, &product)) return false;
        if (level.size != FH_UNDEFINED && __builtin_mul_overflow(level.size, size_power, &product)) return false;
    }
    return true;
}

static void rescale_side(fh_side_array *side, int64_t price_power, int64_t size_power)
{
    for (uint32_t index = 0; index < side->count; index++) {
        fh_level *level = &side->level[index];
        level->price *= price_power;
        if (level->size != FH_UNDEFINED) level->size *= size_power;
    }
}

bool fh_book_rescale(fh_book *book, int price_power, int size_power)
{
    if (price_power < 0 || price_power > FH_DIGITS_MAX || size_power < 0 || size_power > FH_DIGITS_MAX) return false;
    int64_t price = (int64_t)fh_power_of_ten[price_power], size = (int64_t)fh_power_of_ten[size_power];
    if (!side_fits(&book->bid, price, size) || !side_fits(&book->ask, price, size)) return false;
    rescale_side(&book->bid, price, size);
    rescale_side(&book->ask, price, size);
    return true;
}

/* The level at a depth from the best, or NULL. */
static const fh_level *level_at(const fh_side_array *side, uint32_t depth)
{
    return depth < side->count ? &side->level[side->count - 1 - depth] : NULL;
}

/* Eight digits of a number below 10^8, the first in the lowest byte: split into 4 + 4, each into 2 + 2, each into 1 + 1, side by
 * side. 10486 / 2^20 and 103 / 2^10 are a hundredth and a tenth, exact below 10,000 and 100. */
static uint64_t eight_digits(uint32_t number)
{
    uint64_t fours = number / 10000 | (uint64_t)(number % 10000) << 32;
    uint64_t hundreds = (fours * 10486 >> 20) & 0x7f0000007full;
    uint64_t twos = hundreds | (fours - 100 * hundreds) << 16;
    uint64_t tens = (twos * 103 >> 10) & 0xf000f000f000full;
    return tens | (twos - 10 * tens) << 8;
}

#define TEXT_ZEROS 0x3030303030303030ull
#define TEXT_ROOM 8 /* write_digits() may store as many bytes behind the text */

/* The decimal text of a number; 0 is no text. Answers where it ends. */
static char *write_digits(uint64_t number, char *at)
{
    bool more = number >= 100000000;
    if (more) at = write_digits(number / 100000000, at);
    uint64_t digits = eight_digits((uint32_t)(number % 100000000));
    unsigned leading = more ? 0 : digits ? (unsigned)__builtin_ctzll(digits) / 8 : 8;
    digits = (digits | TEXT_ZEROS) >> (leading & 7) * 8;
    memcpy(at, &digits, sizeof digits);
    return at + 8 - leading;
}

/* Without the digits that were added behind those sent; an impossible rest stays, and the checksum says so. */
static char *kraken_number(int64_t number, int added, char *at)
{
    int64_t sent = number;
    if (number < 0) return at;
    if (added && !fh_decimal_drop_zeros(number, added, &sent)) sent = number;
    return write_digits((uint64_t)sent, at);
}

/* Text of the top 10 of a side as Kraken hashes it: digits as sent, without dot and leading zeros. */
static char *kraken_side(const fh_side_array *side, int price_added, int size_added, char *at)
{
    for (uint32_t depth = 0; depth < KRAKEN_DEPTH; depth++) {
        const fh_level *level = level_at(side, depth);
        if (!level) break;
        at = kraken_number(level->price, price_added, at);
        at = kraken_number(level->size, size_added, at);
    }
    return at;
}

uint32_t fh_book_crc_kraken(const fh_book *book, int price_added, int size_added)
{
    char text[2 * KRAKEN_DEPTH * 2 * NUMBER_SIZE_MAX + TEXT_ROOM];
    char *end = kraken_side(&book->ask, price_added, size_added, text);
    end = kraken_side(&book->bid, price_added, size_added, end);
    return fh_crc32(text, (size_t)(end - text));
}

static char *okx_level(const fh_level *level, int price_digits, int size_digits, char *at)
{
    at += fh_decimal_format(level->price, price_digits, at);
    *at++ = ':';
    at += fh_decimal_format(level->size, size_digits, at);
    *at++ = ':';
    return at;
}

uint32_t fh_book_crc_okx(const fh_book *book, int price_digits, int size_digits)
{
    char text[2 * OKX_DEPTH * 2 * (NUMBER_SIZE_MAX + 1)], *at = text;
    for (uint32_t depth = 0; depth < OKX_DEPTH; depth++) {
        const fh_level *bid = level_at(&book->bid, depth), *ask = level_at(&book->ask, depth);
        if (bid) at = okx_level(bid, price_digits, size_digits, at);
        if (ask) at = okx_level(ask, price_digits, size_digits, at);
    }
    return fh_crc32(text, at == text ? 0 : (size_t)(at - text) - 1); /* without the last colon */
}
