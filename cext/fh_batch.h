/* SPDX-License-Identifier: Apache-2.0
 * fh_batch.h: what a venue's decoder hands to the publisher.
 *
 * Who writes:   a decoder, one frame at a time; who reads: the publisher, right after.
 * What blocks:  nothing. What is lost: nothing; a message that does not fit is FH_ERROR_FULL.
 * After an error the batch holds only what was complete before this frame: a decoder calls
 * fh_batch_mark() first and fh_batch_rollback() on any error.
 */
#ifndef FH_BATCH_H
#define FH_BATCH_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include "fh_decimal.h"
#include "fh_error.h"
#include "fh_json.h"
#include "include/feedhandler.h"

/* What kind of stream an event came on. An instrument has at most one stream of a channel, and at most
 * one FH_CHANNEL_BOOK stream whatever its speed or depth. */
typedef enum fh_channel {
    FH_CHANNEL_TRADE = 0, FH_CHANNEL_AGG_TRADE = 1, FH_CHANNEL_QUOTE = 2, FH_CHANNEL_BOOK = 3,
    FH_CHANNEL_TICKER = 4, FH_CHANNEL_MARK = 5, FH_CHANNEL_INDEX = 6, FH_CHANNEL_FUNDING = 7,
    FH_CHANNEL_OPEN_INTEREST = 8, FH_CHANNEL_LIQUIDATION = 9, FH_CHANNEL_CANDLE = 10,
    FH_CHANNEL_GREEKS = 11, FH_CHANNEL_INSTRUMENT = 12, FH_CHANNEL_COUNT = 13
} fh_channel;

/* One changed (or, in a snapshot, present) price level. The decoder parses into `raw` form (mantissa and
 * fraction digits as written); fh_batch_scale() turns it into the instrument's mantissas. */
typedef struct fh_change {
    int64_t price, size;  /* size 0 deletes */
    uint32_t order_count; /* 0: not told */
    uint8_t side;         /* enum fh_side */
    int8_t price_digits, size_digits; /* fraction digits as written (+ FH_CHANGE_CUT); once scaled the row's */
    uint8_t flags;        /* FH_INEXACT, FH_OVERFLOW; with the latter price or size is FH_UNDEFINED: no such price goes into a book */
} fh_change;
#define FH_CHANGE_CUT 64  /* in *_digits of a raw change: the text had more digits than int64 holds (FH_INEXACT of its fh_decimal) */
_Static_assert(sizeof(fh_change) == 24, "three words a level");

/* A book message: a run of changes and the venue's numbers to chain it by. */
typedef struct fh_book_event {
    uint64_t first, last, prev;  /* as the venue means them; last is also header.sequence */
    uint32_t change_begin, change_count; /* in batch->changes */
    uint32_t checksum;
    uint8_t has_first, has_prev, has_checksum; /* 1: the field was in the message */
    uint8_t window;              /* 1: a whole new window of levels, no chain (depth20, books5, grouped) */
} fh_book_event;

/* One venue event. For every kind but FH_LEVEL (a book message), body holds the words of the record and
 * of its continuations, ready to be copied behind the record header. */
typedef struct fh_event {
    uint64_t ts_event_ns;
    uint64_t sequence;    /* what arbitration compares within (instrument, channel): trade id, update id; 0: none */
    uint32_t instrument;
    uint8_t kind;         /* enum fh_kind; FH_LEVEL is a book message */
    uint8_t flags;        /* enum fh_flag to put on the record(s); FH_SNAPSHOT on a full book */
    uint8_t channel;      /* fh_channel of the stream it came on */
    uint8_t slot_count;   /* slots of the record: 1, or more with continuations */
    union { int64_t word[12]; fh_book_event book; } body;
} fh_event;

/* What one frame said. control marks a frame that is no market data: the control plane gets it as it is. */
typedef struct fh_batch {
    fh_event *events;   uint32_t event_count, event_max;
    fh_change *changes; uint32_t change_count, change_max;
    uint32_t event_mark, change_mark;
    uint32_t control;        /* 1: this frame is an ack, error, pong, heartbeat, notice: see Venue.control() */
    uint32_t ignored;        /* events of this frame dropped on purpose (non-market trades, history, …) */
    uint32_t unlisted;       /* events of symbols that are not in the table, dropped and counted */
    uint32_t accept_inexact; /* 1: do not answer FH_ERROR_DIGITS, flag the record instead */
    uint32_t wanted_instrument; /* with FH_ERROR_DIGITS: who needs more digits, and how many */
    int8_t wanted_price_digits, wanted_size_digits;
    fh_text unlisted_symbol; /* the last one: points into the frame */
} fh_batch;

/* Allocate at start: event_max events, change_max changes. FH_OK or FH_ERROR_SYSTEM. */
int fh_batch_init(fh_batch *batch, uint32_t event_max, uint32_t change_max);
void fh_batch_free(fh_batch *batch);

static inline void fh_batch_clear(fh_batch *batch)
{
    batch->event_count = batch->change_count = 0;
    batch->control = batch->ignored = batch->unlisted = 0;
}
static inline void fh_batch_mark(fh_batch *batch)
{
    batch->event_mark = batch->event_count;
    batch->change_mark = batch->change_count;
}
static inline void fh_batch_rollback(fh_batch *batch)
{
    batch->event_count = batch->event_mark;
    batch->change_count = batch->change_mark;
}

/* Next event, zeroed but for kind, or NULL when full (answer FH_ERROR_FULL). */
static inline fh_event *fh_batch_event(fh_batch *batch, uint8_t kind)
{
    if (batch->event_count == batch->event_max) return NULL;
    fh_event *event = &batch->events[batch->event_count++];
    memset(event, 0, sizeof *event);
    event->kind = kind;
    event->slot_count = 1;
    event->flags = FH_LAST;
    return event;
}

/* Append one raw change. FH_OK, FH_ERROR_FULL, or FH_ERROR_RANGE for a negative size. */
static inline int fh_batch_change(fh_batch *batch, uint8_t side, const fh_decimal *price, const fh_decimal *size,
                                  uint32_t order_count)
{
    if (FH_UNLIKELY(batch->change_count == batch->change_max)) return FH_ERROR_FULL;
    if (FH_UNLIKELY(size->mantissa < 0 && size->mantissa != FH_UNDEFINED)) return FH_ERROR_RANGE;
    fh_change *change = &batch->changes[batch->change_count++];
    change->price = price->mantissa;
    change->size = size->mantissa;
    change->order_count = order_count;
    change->side = side;
    change->price_digits = (int8_t)(price->digits | (price->flags & FH_INEXACT ? FH_CHANGE_CUT : 0));
    change->size_digits = (int8_t)(size->digits | (size->flags & FH_INEXACT ? FH_CHANGE_CUT : 0));
    change->flags = 0;
    return FH_OK;
}

/* Bring a parsed number to an instrument's exponent. FH_OK, FH_ERROR_DIGITS (batch->wanted_* say what it
 * needs), or with accept_inexact the flag in event->flags and FH_OK. A number that no exponent of up to
 * FH_DIGITS_MAX digits would hold is flagged at once: FH_ERROR_DIGITS is answered only where raising helps. */
static inline int fh_batch_price(fh_batch *batch, fh_event *event, const fh_instrument *row, const fh_decimal *decimal, int64_t *out);
static inline int fh_batch_size(fh_batch *batch, fh_event *event, const fh_instrument *row, const fh_decimal *decimal, int64_t *out);
/* Their general form: a number written with more digits than the row has, or one that does not fit. */
int fh_batch_price_slow(fh_batch *batch, fh_event *event, const fh_instrument *row, const fh_decimal *decimal, int64_t *out);
int fh_batch_size_slow(fh_batch *batch, fh_event *event, const fh_instrument *row, const fh_decimal *decimal, int64_t *out);

/* The same for the run of raw changes of a book event, each with its own flags; event->flags stay. wanted_* cover
 * the whole run. Scaling again changes nothing. */
int fh_batch_scale(fh_batch *batch, fh_event *event, const fh_instrument *row);

/* Append the levels of one side: the cursor stands at an array of rows. Shapes: [price, size, ...] as strings
 * or numbers with `skip` leading elements ignored (Deribit's action: 1) and the order count taken from
 * element count_index (0: none). Kraken's {"price":…,"qty":…} rows have fh_batch_levels_object().
 * FH_OK, FH_ERROR_FULL, FH_ERROR_MISSING (a row without price or size), FH_ERROR_RANGE, or the cursor's error;
 * any of them is also json->error. */
int fh_batch_levels(fh_batch *batch, fh_json *json, uint8_t side, int skip, int count_index);
int fh_batch_levels_object(fh_batch *batch, fh_json *json, uint8_t side, const char *price_key, const char *size_key);

static inline int fh_batch_price(fh_batch *batch, fh_event *event, const fh_instrument *row, const fh_decimal *decimal, int64_t *out)
{
    unsigned more = (unsigned)(-row->price_exponent - decimal->digits);
    if (FH_UNLIKELY(decimal->flags || more > FH_DIGITS_MAX
                    || __builtin_mul_overflow(decimal->mantissa, (int64_t)fh_power_of_ten[more], out)))
        return fh_batch_price_slow(batch, event, row, decimal, out);
    return FH_OK;
}

static inline int fh_batch_size(fh_batch *batch, fh_event *event, const fh_instrument *row, const fh_decimal *decimal, int64_t *out)
{
    unsigned more = (unsigned)(-row->size_exponent - decimal->digits);
    if (FH_UNLIKELY(decimal->flags || more > FH_DIGITS_MAX
                    || __builtin_mul_overflow(decimal->mantissa, (int64_t)fh_power_of_ten[more], out)))
        return fh_batch_size_slow(batch, event, row, decimal, out);
    return FH_OK;
}

#endif
