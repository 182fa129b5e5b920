/* SPDX-License-Identifier: Apache-2.0
 * Doors through which the tests reach the static inline calls of the core. */
#include "fh_batch.h"
#include "fh_book.h"

/* What a walk through the public calls saw, as tokens: a letter, a size, bytes. */
typedef struct probe_dump { char *at, *end; } probe_dump;

static void token(probe_dump *dump, char letter, const void *bytes, size_t size)
{
    uint32_t size32 = (uint32_t)size;
    if ((size_t)(dump->end - dump->at) < size + 5) return;
    *dump->at = letter;
    memcpy(dump->at + 1, &size32, 4);
    memcpy(dump->at + 5, bytes, size);
    dump->at += size + 5;
}

static void walk(fh_json *json, probe_dump *dump)
{
    fh_key key;
    fh_text text;
    fh_decimal decimal;
    bool truth;
    char first = fh_json_peek(json);
    if (first == '{') {
        token(dump, '{', "", 0);
        fh_json_object(json);
        while (fh_json_key(json, &key)) {
            token(dump, key.escaped ? 'k' : 'K', key.at, key.size);
            walk(json, dump);
        }
        token(dump, '}', "", 0);
    } else if (first == '[') {
        token(dump, '[', "", 0);
        fh_json_array(json);
        while (fh_json_element(json)) walk(json, dump);
        token(dump, ']', "", 0);
    } else if (first == '"') {
        if (fh_json_string(json, &text)) token(dump, text.escaped ? 's' : 'S', text.at, text.size);
    } else if (first == 't' || first == 'f') {
        if (fh_json_bool(json, &truth)) token(dump, truth ? 'T' : 'F', "", 0);
    } else if (first == 'n') {
        if (fh_json_null(json)) token(dump, 'N', "", 0);
        else fh_json_skip(json);
    } else if (fh_json_decimal(json, &decimal)) {
        char bytes[12];
        memcpy(bytes, &decimal.mantissa, 8);
        memcpy(bytes + 8, &decimal.digits, 2);
        memcpy(bytes + 10, &decimal.flags, 2);
        token(dump, 'D', bytes, sizeof bytes);
    }
}

/* Walk the whole text; answers fh_json_close(). *dump_size: bytes of tokens written. */
int probe_walk(const char *text, size_t size, char *dump_bytes, size_t *dump_size)
{
    fh_json json;
    probe_dump dump = { dump_bytes, dump_bytes + *dump_size };
    fh_json_open(&json, text, size);
    walk(&json, &dump);
    *dump_size = (size_t)(dump.at - dump_bytes);
    return fh_json_close(&json);
}

int probe_skip(const char *text, size_t size)
{
    fh_json json;
    fh_json_open(&json, text, size);
    fh_json_skip(&json);
    return fh_json_close(&json);
}

int probe_raw(const char *text, size_t size, size_t *offset, size_t *raw_size)
{
    fh_json json;
    fh_text raw = { text, 0, false };
    fh_json_open(&json, text, size);
    fh_json_raw(&json, &raw);
    *offset = (size_t)(raw.at - text);
    *raw_size = raw.size;
    return fh_json_close(&json);
}

/* One value read by the named call, as 8 bytes of answer. */
int probe_value(const char *call, const char *text, size_t size, void *answer)
{
    fh_json json;
    bool truth = false;
    fh_json_open(&json, text, size);
    if (!strcmp(call, "uint")) fh_json_uint(&json, answer);
    else if (!strcmp(call, "int")) fh_json_int(&json, answer);
    else if (!strcmp(call, "time_ms")) fh_json_time_ms(&json, answer);
    else if (!strcmp(call, "time_iso")) fh_json_time_iso(&json, answer);
    else if (!strcmp(call, "double")) fh_json_double(&json, answer);
    else if (!strcmp(call, "bool")) fh_json_bool(&json, &truth), *(uint64_t *)answer = truth;
    else if (!strcmp(call, "null")) *(uint64_t *)answer = fh_json_null(&json);
    else if (!strcmp(call, "absent")) *(uint64_t *)answer = fh_json_absent(&json);
    else return 1;
    return fh_json_close(&json);
}

/* What an object holds under name, read as a string: how a decoder looks for its fields. -100: not there. */
int probe_field(const char *text, size_t size, const char *name, size_t *offset, size_t *value_size)
{
    fh_json json;
    fh_key key;
    fh_text value = { text, 0, false };
    bool found = false;
    fh_json_open(&json, text, size);
    fh_json_object(&json);
    while (fh_json_key(&json, &key)) {
        if (fh_key_is(&key, name)) found = fh_json_string(&json, &value);
        else fh_json_skip(&json);
    }
    *offset = (size_t)(value.at - text);
    *value_size = value.size;
    int answer = fh_json_close(&json);
    return answer || found ? answer : -100;
}

/* What is left of an error: how many of twelve further calls succeed, and how much text they consume. */
int probe_after_error(const char *text, size_t size)
{
    fh_json json;
    fh_key key;
    fh_text value;
    fh_decimal decimal;
    uint64_t number;
    int64_t integer;
    double real;
    bool truth;
    fh_json_open(&json, text, size);
    fh_json_fail(&json, FH_ERROR_RANGE);
    int count = fh_json_object(&json) + fh_json_array(&json) + fh_json_key(&json, &key) + fh_json_element(&json)
        + fh_json_string(&json, &value) + fh_json_decimal(&json, &decimal) + fh_json_uint(&json, &number)
        + fh_json_int(&json, &integer) + fh_json_bool(&json, &truth) + fh_json_null(&json) + fh_json_skip(&json)
        + fh_json_raw(&json, &value) + fh_json_time_ms(&json, &number) + fh_json_time_iso(&json, &number)
        + fh_json_double(&json, &real) + fh_json_absent(&json) + (fh_json_peek(&json) != 0);
    return fh_json_close(&json) == FH_ERROR_RANGE ? count : -1;
}

/* The answer to a decoder that enters a container, leaves its loop early and closes. */
int probe_unfinished(const char *text, size_t size)
{
    fh_json json;
    fh_json_open(&json, text, size);
    fh_json_array(&json);
    return fh_json_close(&json);
}

typedef struct probe_number { int64_t mantissa; int16_t digits; uint16_t flags; int32_t answer; } probe_number;

/* Each line of text as a number. how: 0 fh_decimal_parse(), 1 bare JSON, 2 the line is a quoted JSON number. */
void probe_numbers(const char *text, size_t size, int how, probe_number *out)
{
    const char *end = text + size;
    while (text < end) {
        const char *line = memchr(text, '\n', (size_t)(end - text));
        size_t line_size = (size_t)(line - text);
        fh_decimal decimal = {0};
        fh_json json;
        if (how == 0) {
            out->answer = fh_decimal_parse(text, line_size, &decimal);
        } else {
            fh_json_open(&json, text, line_size);
            fh_json_decimal(&json, &decimal);
            out->answer = fh_json_close(&json);
        }
        out->mantissa = decimal.mantissa;
        out->digits = decimal.digits;
        out->flags = decimal.flags;
        out++;
        text = line + 1;
    }
}

/* Levels of one side into changes; rows of "price_key" objects where that is given. *count: in, the room; out, the rows. */
int probe_levels(const char *text, size_t size, int skip, int count_index, const char *price_key, const char *size_key,
                 fh_change *changes, uint32_t *count)
{
    fh_json json;
    fh_batch batch = { .changes = changes, .change_max = *count };
    fh_json_open(&json, text, size);
    int answer = price_key ? fh_batch_levels_object(&batch, &json, FH_BID, price_key, size_key)
                           : fh_batch_levels(&batch, &json, FH_BID, skip, count_index);
    *count = batch.change_count;
    int closed = fh_json_close(&json);
    return answer ? (answer == closed ? answer : 1) : closed;
}

/* Scale changes to a row; wanted: instrument, price digits, size digits. */
int probe_scale(fh_change *changes, uint32_t count, int price_exponent, int size_exponent, int accept, int64_t wanted[3])
{
    fh_instrument row = { .id = 7, .price_exponent = (int8_t)price_exponent, .size_exponent = (int8_t)size_exponent };
    fh_batch batch = { .changes = changes, .change_count = count, .accept_inexact = (uint32_t)accept };
    fh_event event = { .kind = FH_LEVEL, .body.book.change_count = count };
    int answer = fh_batch_scale(&batch, &event, &row);
    wanted[0] = batch.wanted_instrument;
    wanted[1] = batch.wanted_price_digits;
    wanted[2] = batch.wanted_size_digits;
    return answer;
}

/* fh_batch_price() or fh_batch_size() of one decimal text; out: value, event flags, wanted instrument, price, size. */
int probe_scale_one(const char *text, size_t size, int is_size, int price_exponent, int size_exponent, int accept, int64_t out[5])
{
    fh_instrument row = { .id = 7, .price_exponent = (int8_t)price_exponent, .size_exponent = (int8_t)size_exponent };
    fh_batch batch = { .accept_inexact = (uint32_t)accept };
    fh_event event = {0};
    fh_decimal decimal;
    if (fh_decimal_parse(text, size, &decimal)) return 1;
    int answer = is_size ? fh_batch_size(&batch, &event, &row, &decimal, out) : fh_batch_price(&batch, &event, &row, &decimal, out);
    out[1] = event.flags;
    out[2] = batch.wanted_instrument;
    out[3] = batch.wanted_price_digits;
    out[4] = batch.wanted_size_digits;
    return answer;
}

/* Events and changes up to their maxima, marked and rolled back: 0 if every step was as declared, else its line. */
int probe_batch_bounds(void)
{
    fh_batch batch;
    fh_decimal one = { 1, 0, 0 }, minus = { -1, 0, 0 };
#define CHECK(test) do { if (!(test)) return __LINE__; } while (0)
    CHECK(fh_batch_init(&batch, 2, 3) == FH_OK);
    CHECK(fh_batch_event(&batch, FH_TRADE)->kind == FH_TRADE && batch.events[0].flags == FH_LAST);
    CHECK(fh_batch_change(&batch, FH_BID, &one, &one, 0) == FH_OK);
    fh_batch_mark(&batch);
    CHECK(fh_batch_event(&batch, FH_QUOTE) && !fh_batch_event(&batch, FH_QUOTE));
    CHECK(fh_batch_change(&batch, FH_BID, &one, &one, 0) == FH_OK && fh_batch_change(&batch, FH_ASK, &one, &one, 9) == FH_OK);
    CHECK(fh_batch_change(&batch, FH_BID, &one, &one, 0) == FH_ERROR_FULL && batch.change_count == 3);
    fh_batch_rollback(&batch);
    CHECK(batch.event_count == 1 && batch.change_count == 1);
    CHECK(fh_batch_change(&batch, FH_BID, &minus, &one, 0) == FH_OK);
    CHECK(fh_batch_change(&batch, FH_BID, &one, &minus, 0) == FH_ERROR_RANGE && batch.change_count == 2);
    fh_batch_clear(&batch);
    CHECK(batch.event_count == 0 && batch.change_count == 0);
    fh_batch_free(&batch);
    CHECK(batch.events == NULL && batch.changes == NULL);
    return 0;
}
