/* SPDX-License-Identifier: Apache-2.0
 * fh_book.h: a price-level book: one sorted array a side, best last, so that work near the touch moves little.
 *
 * One owner (the publisher of a worker), no sharing, no allocation after fh_book_init(). A side that is full
 * refuses its worst level and counts it (levels_refused).
 */
#ifndef FH_BOOK_H
#define FH_BOOK_H
#include <stdbool.h>
#include <stdint.h>
#include "fh_batch.h"

/* Where a book stands in the venue's sequence. */
typedef enum fh_chain_state { FH_CHAIN_WAITING = 0, FH_CHAIN_SEEDED = 1, FH_CHAIN_LIVE = 2 } fh_chain_state;
typedef struct fh_chain {
    uint64_t last;   /* sequence of the last message applied */
    uint8_t state;   /* WAITING: no snapshot yet; SEEDED: snapshot applied, first change still to come */
    uint32_t old_run; /* OLD verdicts in a row; kept by venues whose ids may restart, 0 elsewhere */
} fh_chain;

/* What Venue.chain() answers about one book message. */
typedef enum fh_verdict {
    FH_VERDICT_APPLY = 1,  /* next in line; chain->last moved on */
    FH_VERDICT_OLD = 0,    /* already contained in the book: drop, count as stale or duplicate */
    FH_VERDICT_GAP = -1,   /* something between is missing: mark, resync */
    FH_VERDICT_AHEAD = -2  /* SEEDED only: the snapshot is older than this message allows: fetch another snapshot */
} fh_verdict;

typedef struct fh_level { int64_t price, size; } fh_level;

typedef struct fh_side_array {
    fh_level *level;      /* ascending goodness: bids by rising, asks by falling price; level[count - 1] is best */
    uint32_t count, max;
} fh_side_array;

typedef struct fh_book {
    fh_side_array bid, ask;
    uint64_t levels_refused;  /* did not fit */
    uint64_t deletes_absent;  /* deletions of a price that was not there: normal, counted */
} fh_book;

int fh_book_init(fh_book *book, uint32_t level_max); /* levels a side; FH_OK or FH_ERROR_SYSTEM */
void fh_book_free(fh_book *book);
void fh_book_clear(fh_book *book);

/* Set the size at a price; 0 deletes. Answers the depth from the best (0 is the touch) at which it changed
 * the side, or -1 if nothing changed. */
int fh_book_set(fh_book *book, uint8_t side, int64_t price, int64_t size);

/* Keep the best depth levels a side (Kraken: the client truncates). */
void fh_book_truncate(fh_book *book, uint32_t depth);

/* Multiply every price and size by a power of ten: the instrument's exponents were lowered. False if a value
 * would not fit; the book is then unchanged. */
bool fh_book_rescale(fh_book *book, int price_power, int size_power);

static inline const fh_level *fh_book_best(const fh_side_array *side)
{
    return side->count ? &side->level[side->count - 1] : NULL;
}

/* CRC32 (IEEE, as zlib) checksums of venues. Kraken: top 10, digits as sent; *_added: digits (0 to 18) that the mantissas have beyond
 * those, all of them 0. OKX: over mantissas at price_digits/size_digits. */
uint32_t fh_book_crc_kraken(const fh_book *book, int price_added, int size_added);
uint32_t fh_book_crc_okx(const fh_book *book, int price_digits, int size_digits);    /* top 25, canonical text; compare as u32 */

#endif
