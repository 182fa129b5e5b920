/* SPDX-License-Identifier: Apache-2.0 */
#include "fh_batch.h"
#include <stdlib.h>

int fh_batch_init(fh_batch *batch, uint32_t event_max, uint32_t change_max)
{
    *batch = (fh_batch){ .event_max = event_max, .change_max = change_max };
    batch->events = calloc(event_max, sizeof *batch->events);
    batch->changes = calloc(change_max, sizeof *batch->changes);
    if (batch->events && batch->changes) return FH_OK;
    fh_batch_free(batch);
    return FH_ERROR_SYSTEM;
}

void fh_batch_free(fh_batch *batch)
{
    free(batch->events);
    free(batch->changes);
    *batch = (fh_batch){0};
}

/* Mantissa of decimal at an exponent. False only where more digits would hold it exactly: *wanted is how many. */
static inline bool scale(const fh_decimal *decimal, int exponent, int64_t *out, uint16_t *flags, int *wanted)
{
    if (FH_LIKELY(decimal->digits == -exponent && !decimal->flags)) {
        *out = decimal->mantissa;
        return true;
    }
    int dropped = decimal->digits + exponent;
    if (FH_LIKELY(dropped > 0 && dropped <= FH_DIGITS_MAX && !decimal->flags && fh_decimal_drop_zeros(decimal->mantissa, dropped, out)))
        return true;
    *out = fh_decimal_rescale(decimal, -exponent, flags);
    if (!(*flags & FH_INEXACT) || decimal->flags) return true;
    *wanted = fh_decimal_digits_needed(decimal);
    return *wanted > FH_DIGITS_MAX;
}

/* Note that an instrument needs these digits; what it has counts too, so that the answer is never a step back. */
static void want(fh_batch *batch, const fh_instrument *row, int price_digits, int size_digits)
{
    if (price_digits < -row->price_exponent) price_digits = -row->price_exponent;
    if (size_digits < -row->size_exponent) size_digits = -row->size_exponent;
    batch->wanted_instrument = row->id;
    batch->wanted_price_digits = (int8_t)price_digits;
    batch->wanted_size_digits = (int8_t)size_digits;
}

int fh_batch_price_slow(fh_batch *batch, fh_event *event, const fh_instrument *row, const fh_decimal *decimal, int64_t *out)
{
    uint16_t flags = 0;
    int wanted = 0;
    if (!scale(decimal, row->price_exponent, out, &flags, &wanted) && !batch->accept_inexact) {
        want(batch, row, wanted, 0);
        return FH_ERROR_DIGITS;
    }
    event->flags |= (uint8_t)flags;
    return FH_OK;
}

int fh_batch_size_slow(fh_batch *batch, fh_event *event, const fh_instrument *row, const fh_decimal *decimal, int64_t *out)
{
    uint16_t flags = 0;
    int wanted = 0;
    if (!scale(decimal, row->size_exponent, out, &flags, &wanted) && !batch->accept_inexact) {
        want(batch, row, 0, wanted);
        return FH_ERROR_DIGITS;
    }
    event->flags |= (uint8_t)flags;
    return FH_OK;
}

/* One number of a change to a row's exponent; *wanted rises to the digits it needs. */
static void scale_number(int64_t *value, int8_t *digits, int exponent, uint16_t *flags, int *wanted)
{
    fh_decimal decimal = { *value, *digits & ~FH_CHANGE_CUT, *digits & FH_CHANGE_CUT ? FH_INEXACT : 0 };
    uint16_t gained = 0;
    int needed = 0;
    if (*value == FH_UNDEFINED) decimal.flags = FH_OVERFLOW;
    if (!scale(&decimal, exponent, value, &gained, &needed) && needed > *wanted) *wanted = needed;
    *digits = (int8_t)-exponent;
    *flags |= gained;
}

/* The usual case of scale_number(): zeros join or go. False with nothing changed: take the general one. */
static inline bool scale_usual(int64_t *value, int8_t *digits, int exponent)
{
    int64_t scaled;
    int more = -exponent - *digits;
    if (FH_LIKELY(more == 0)) return *value != FH_UNDEFINED;
    if (*value < 0 || *digits & FH_CHANGE_CUT || more > FH_DIGITS_MAX || more < -FH_DIGITS_MAX) return false;
    if (more > 0 ? __builtin_mul_overflow(*value, (int64_t)fh_power_of_ten[more], &scaled)
                 : !fh_decimal_drop_zeros(*value, -more, &scaled)) return false;
    *value = scaled;
    *digits = (int8_t)-exponent;
    return true;
}

int fh_batch_scale(fh_batch *batch, fh_event *event, const fh_instrument *row)
{
    fh_change *change = &batch->changes[event->body.book.change_begin];
    fh_change *end = change + event->body.book.change_count;
    int price_exponent = row->price_exponent, size_exponent = row->size_exponent;
    int price_wanted = 0, size_wanted = 0;
    for (; change < end; change++) {
        uint16_t flags = 0;
        if (FH_UNLIKELY(!scale_usual(&change->price, &change->price_digits, price_exponent)))
            scale_number(&change->price, &change->price_digits, price_exponent, &flags, &price_wanted);
        if (FH_UNLIKELY(!scale_usual(&change->size, &change->size_digits, size_exponent)))
            scale_number(&change->size, &change->size_digits, size_exponent, &flags, &size_wanted);
        change->flags |= (uint8_t)flags;
    }
    if (FH_LIKELY(price_wanted + size_wanted == 0) || batch->accept_inexact) return FH_OK;
    want(batch, row, price_wanted, size_wanted);
    return FH_ERROR_DIGITS;
}

/* One row [skipped…, price, size, rest…]; the cursor stands at it. False with json->error. */
static bool level_row(fh_batch *batch, fh_json *json, uint8_t side, int skip, int count_index)
{
    fh_decimal price, size;
    uint64_t order_count = 0;
    int index = 0;
    if (!fh_json_array(json)) return false;
    for (; index < skip; index++)
        if (!fh_json_element(json) || !fh_json_skip(json)) return fh_json_fail(json, FH_ERROR_MISSING);
    if (!fh_json_element(json) || !fh_json_decimal(json, &price)) return fh_json_fail(json, FH_ERROR_MISSING);
    if (!fh_json_element(json) || !fh_json_decimal(json, &size)) return fh_json_fail(json, FH_ERROR_MISSING);
    for (index += 2; fh_json_element(json); index++) {
        if (index != count_index) fh_json_skip(json);
        else if (fh_json_uint(json, &order_count) && order_count > UINT32_MAX) fh_json_fail(json, FH_ERROR_RANGE);
    }
    int answer = fh_batch_change(batch, side, &price, &size, (uint32_t)order_count);
    return !json->error && (answer == FH_OK || fh_json_fail(json, answer));
}

int fh_batch_levels(fh_batch *batch, fh_json *json, uint8_t side, int skip, int count_index)
{
    fh_json_array(json);
    while (fh_json_element(json))
        if (!level_row(batch, json, side, skip, count_index)) break;
    return json->error;
}

static bool name_is(const fh_key *key, const char *name, size_t size)
{
    return key->size == size && !key->escaped && memcmp(key->at, name, size) == 0;
}

typedef struct level_names { const char *price, *size; size_t price_size, size_size; } level_names;

/* One row {"price":…,"qty":…}; a number that comes twice is malformed. */
static bool level_object(fh_batch *batch, fh_json *json, uint8_t side, const level_names *names)
{
    fh_decimal price, size;
    fh_key key;
    bool has_price = false, has_size = false;
    fh_json_object(json);
    while (fh_json_key(json, &key)) {
        bool is_price = name_is(&key, names->price, names->price_size);
        bool is_size = !is_price && name_is(&key, names->size, names->size_size);
        if ((is_price && has_price) || (is_size && has_size)) return fh_json_fail(json, FH_ERROR_MALFORMED);
        has_price |= is_price;
        has_size |= is_size;
        if (is_price) fh_json_decimal(json, &price);
        else if (is_size) fh_json_decimal(json, &size);
        else fh_json_skip(json);
    }
    if (json->error) return false;
    if (!has_price || !has_size) return fh_json_fail(json, FH_ERROR_MISSING);
    int answer = fh_batch_change(batch, side, &price, &size, 0);
    return answer == FH_OK || fh_json_fail(json, answer);
}

int fh_batch_levels_object(fh_batch *batch, fh_json *json, uint8_t side, const char *price_key, const char *size_key)
{
    level_names names = { price_key, size_key, strlen(price_key), strlen(size_key) };
    fh_json_array(json);
    while (fh_json_element(json))
        if (!level_object(batch, json, side, &names)) break;
    return json->error;
}
