/* SPDX-License-Identifier: Apache-2.0
 * fh_json.h: a bounded, order-free, allocation-free cursor over one JSON text.
 *
 * Use: open, walk objects and arrays with the calls below, and close. Unknown keys are skipped. An error
 * sets json->error and makes every later call answer at once (false, or the error), so a decoder checks
 * once, at fh_json_close(), before anything it decoded counts.
 *
 * Accepted is what RFC 8259 calls JSON, skipped values included; only UTF-8 is not checked here (the listener does
 * that) and escapes are not decoded. A key that comes twice is reported twice: a decoder that must not
 * take both says so. A value is consumed by exactly one call; one that was not makes the next call an error.
 *
 * Buffer: at least FH_JSON_PAD readable bytes lie behind the text, whatever they hold (in a receive
 * buffer: the next frame). Wide loads may touch them; no byte of them is ever accepted, nor changes an answer.
 *
 *     fh_json_open(&json, payload, size);
 *     fh_json_object(&json);
 *     while (fh_json_key(&json, &key)) {
 *         if (fh_key_is(&key, "price")) fh_json_decimal(&json, &price);
 *         else fh_json_skip(&json);
 *     }
 *     return fh_json_close(&json);
 */
#ifndef FH_JSON_H
#define FH_JSON_H
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include "fh_decimal.h"
#include "fh_error.h"
#include "fh_scan.h"

#define FH_JSON_PAD 64        /* readable bytes behind the text */
#define FH_JSON_DEPTH_MAX 32  /* nesting of objects and arrays; deeper is FH_ERROR_DEPTH */

typedef struct fh_json {
    const char *at, *end; /* at: next byte */
    int error;            /* first fh_error met, or FH_OK */
    uint32_t depth;
    bool first;           /* just behind a '{' or '[' */
} fh_json;

/* Where a string (without its quotes) or a raw value stands in the buffer. escaped: it holds a backslash, not decoded. */
typedef struct fh_text { const char *at; size_t size; bool escaped; } fh_text;
typedef fh_text fh_key; /* a key holding an escape equals no name */

/* Whether a key (or string) is exactly this literal. */
static inline bool fh_key_is(const fh_key *key, const char *name)
{
    size_t size = __builtin_strlen(name);
    return key->size == size && !key->escaped && __builtin_memcmp(key->at, name, size) == 0;
}

/* Every call below first consumes white space, then one token or value. On an error: false, json->error set. */
void   fh_json_open(fh_json *json, const char *text, size_t size);
int    fh_json_close(fh_json *json);             /* FH_OK only if the whole text was one value */
static inline bool fh_json_object(fh_json *json);            /* enter '{'; false (and error) if the value is no object */
static inline bool fh_json_key(fh_json *json, fh_key *key);  /* next key, its ':' consumed; false at '}' or on error */
static inline bool fh_json_array(fh_json *json);             /* enter '[' */
static inline bool fh_json_element(fh_json *json);           /* stands at the next element; false at ']' or on error */
static inline char fh_json_peek(fh_json *json);              /* first byte of the value ahead, not consumed; 0 on error */
static inline bool fh_json_string(fh_json *json, fh_text *text);
static inline bool fh_json_decimal(fh_json *json, fh_decimal *decimal);   /* bare or quoted number */
static inline bool fh_json_decimal_usual(fh_json *json, fh_decimal *decimal); /* only the usual shape; else false, nothing consumed, no error */
static inline bool fh_json_quoted_usual(fh_json *json, fh_decimal *decimal);  /* the same of a quoted number alone; the caller saw the quote */
static inline bool fh_json_uint(fh_json *json, uint64_t *value);  /* bare or quoted integer; FH_ERROR_RANGE: sign, fraction, exponent, above 2^64 - 1 */
bool   fh_json_int(fh_json *json, int64_t *value);           /* the same with a sign */
bool   fh_json_bool(fh_json *json, bool *value);
bool   fh_json_null(fh_json *json);              /* consumes null and answers true; else consumes nothing */
bool   fh_json_absent(fh_json *json);            /* the same for null and "": a number the venue did not fill in */
static inline bool fh_json_skip(fh_json *json);  /* any value, validated as JSON */
bool   fh_json_raw(fh_json *json, fh_text *text);/* any value, skipped; text spans it (decode it later) */
static inline bool fh_json_time_ms(fh_json *json, uint64_t *ns); /* epoch ms, bare or quoted; FH_ERROR_RANGE outside 1970 to 2199 */
bool   fh_json_time_iso(fh_json *json, uint64_t *ns);        /* "2026-08-24T22:21:57.110183Z", 0 to 9 fraction digits; years as above */
bool   fh_json_double(fh_json *json, double *value);         /* bare or quoted; analytics only (greeks), never prices */

#define FH_TIME_MS_MAX 7258118400000ull /* 2200-01-01; in ns it is below INT64_MAX */

/* The general, bounded form of the calls below, which handle what is usual: no white space, short, no escape. */
bool fh_json_fail(fh_json *json, int error);     /* sets the error, moves to the end; answers false */
bool fh_json_enter_slow(fh_json *json, char bracket);
bool fh_json_key_slow(fh_json *json, fh_key *key);
bool fh_json_element_slow(fh_json *json);
char fh_json_peek_slow(fh_json *json);
bool fh_json_string_slow(fh_json *json, fh_text *text);
bool fh_json_decimal_slow(fh_json *json, fh_decimal *decimal);
bool fh_json_uint_slow(fh_json *json, uint64_t *value);
bool fh_json_skip_slow(fh_json *json);

static inline bool fh_json_enter(fh_json *json, char bracket)
{
    if (FH_UNLIKELY(json->at >= json->end || *json->at != bracket || json->depth >= FH_JSON_DEPTH_MAX))
        return fh_json_enter_slow(json, bracket);
    json->at++;
    json->depth++;
    json->first = true;
    return true;
}

static inline bool fh_json_object(fh_json *json) { return fh_json_enter(json, '{'); }
static inline bool fh_json_array(fh_json *json) { return fh_json_enter(json, '['); }

/* Behind the closing bracket. */
static inline bool fh_json_leave(fh_json *json)
{
    json->at++;
    json->depth--;
    json->first = false;
    return false;
}

#define FH_JSON_LETTER_KEY (0x3a220022u) /* '"', a byte not looked at, '"', ':' */

static inline bool fh_json_key(fh_json *json, fh_key *key)
{
    const char *at = json->at;
    unsigned size;
    if (*at == '}' && at < json->end) return fh_json_leave(json);
    if (!json->first) {
        if (FH_UNLIKELY(*at != ',')) return fh_json_key_slow(json, key);
        at++;
        FH_BRANCH(at);
    }
    uint64_t word = fh_load_u64(at);
    key->at = at + 1;
    key->escaped = false;
    /* A letter is a whole key at many venues, and where the next token starts is then known without a look. */
    if ((word & 0xffff00ff) == FH_JSON_LETTER_KEY && (unsigned char)((at[1] | 0x20) - 'a') < 26) {
        key->size = 1;
        at += 4;
        FH_BRANCH(at);
        if (FH_UNLIKELY(at > json->end)) return fh_json_key_slow(json, key);
        json->at = at;
        json->first = false;
        return true;
    }
    if (FH_UNLIKELY((char)word != '"' || !fh_scan_string(at + 1, &size))) return fh_json_key_slow(json, key);
    key->size = size;
    at += size + 3;
    if (FH_UNLIKELY(at[-1] != ':' || at > json->end)) return fh_json_key_slow(json, key);
    json->at = at;
    json->first = false;
    return true;
}

static inline bool fh_json_element(fh_json *json)
{
    char byte = *json->at;
    if (FH_UNLIKELY(json->at >= json->end)) return fh_json_element_slow(json);
    if (byte == ']') return fh_json_leave(json);
    if (json->first) {
        if (FH_UNLIKELY((unsigned char)byte <= ' ')) return fh_json_element_slow(json);
        json->first = false;
        return true;
    }
    if (FH_UNLIKELY(byte != ',' || json->at[1] == ']')) return fh_json_element_slow(json);
    json->at++;
    return true;
}

static inline char fh_json_peek(fh_json *json)
{
    if (FH_UNLIKELY(json->at >= json->end || (unsigned char)*json->at <= ' ')) return fh_json_peek_slow(json);
    return *json->at;
}

static inline bool fh_json_string(fh_json *json, fh_text *text)
{
    const char *at = json->at + 1;
    unsigned size;
    if (FH_UNLIKELY(at[-1] != '"' || !fh_scan_string32(at, &size) || at + size + 1 > json->end))
        return fh_json_string_slow(json, text);
    text->at = at;
    text->size = size;
    text->escaped = false;
    json->at = at + size + 1;
    return true;
}

/* Look at a number of the usual shape, bare or quoted: where it starts, and where the next token does. False: take the slow path. */
static inline bool fh_json_number(const fh_json *json, const char **start, unsigned *whole, unsigned *size, const char **next)
{
    const char *at = json->at;
    bool quoted = *at == '"';
    if (quoted) {
        at++;
        FH_BRANCH(at);
    }
    if (FH_UNLIKELY(!fh_scan_number(at, whole, size))) return false;
    *start = at;
    at += *size;
    if (quoted) {
        if (FH_UNLIKELY(*at != '"')) return false;
        at++;
        FH_BRANCH(at);
    } else if (FH_UNLIKELY((*at | 0x20) == 'e')) {
        return false;
    }
    *next = at;
    return FH_LIKELY(at <= json->end);
}

static inline bool fh_json_decimal_usual(fh_json *json, fh_decimal *decimal)
{
    const char *at, *next;
    unsigned whole, size;
    if (FH_UNLIKELY(!fh_json_number(json, &at, &whole, &size, &next) || !fh_scan_decimal(at, whole, size, decimal)))
        return false;
    json->at = next;
    return true;
}

/* The same where the quote has been seen. */
static inline bool fh_json_quoted_usual(fh_json *json, fh_decimal *decimal)
{
    const char *at = json->at + 1;
    unsigned whole, size;
    if (FH_UNLIKELY(!fh_scan_number(at, &whole, &size) || at[size] != '"' || at + size >= json->end
                    || !fh_scan_decimal(at, whole, size, decimal)))
        return false;
    json->at = at + size + 1;
    return true;
}

static inline bool fh_json_decimal(fh_json *json, fh_decimal *decimal)
{
    return FH_LIKELY(fh_json_decimal_usual(json, decimal)) || fh_json_decimal_slow(json, decimal);
}

static inline bool fh_json_uint(fh_json *json, uint64_t *value)
{
    const char *at, *next;
    unsigned whole, size;
    if (FH_UNLIKELY(!fh_json_number(json, &at, &whole, &size, &next) || size != whole || (*at == '0' && whole > 1)))
        return fh_json_uint_slow(json, value);
    *value = fh_scan_digits16(at, whole);
    json->at = next;
    return true;
}

static inline bool fh_json_skip(fh_json *json)
{
    fh_text text;
    return *json->at == '"' ? fh_json_string(json, &text) : fh_json_skip_slow(json);
}

static inline bool fh_json_time_ms(fh_json *json, uint64_t *ns)
{
    uint64_t ms;
    const char *at = json->at;
    if (*at == '"') {
        at++;
        FH_BRANCH(at);
    }
    /* Of a size known beforehand, the value does not keep the next token waiting. */
    if (FH_LIKELY(*at != '0' && fh_scan_is_13_digits(at) && (at == json->at ? (at[13] | 0x20) != 'e' && at[13] != '.' : at[13] == '"')
                  && at + 14 <= json->end)) {
        ms = fh_scan_digits16(at, 13);
        json->at = at == json->at ? at + 13 : at + 14;
    } else if (!fh_json_uint(json, &ms)) {
        return false;
    }
    if (FH_UNLIKELY(ms == 0 || ms >= FH_TIME_MS_MAX)) return fh_json_fail(json, FH_ERROR_RANGE);
    *ns = ms * 1000000;
    return true;
}

#endif
