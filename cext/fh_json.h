/* SPDX-License-Identifier: Apache-2.0
 * fh_json.h: a bounded, order-free, allocation-free cursor over one JSON text.
 *
 * Use: open, walk objects and arrays with the calls below, and close. Unknown keys are skipped. An error
 * sets json->error and makes every later call answer at once (false, or the error), so a decoder checks
 * once, at fh_json_close(), before anything it decoded counts.
 *
 * Buffer: at least FH_JSON_PAD readable bytes lie behind the text, whatever they hold (in a receive
 * buffer: the next frame). Wide loads may touch them; no byte of them is ever accepted.
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

#define FH_JSON_PAD 64        /* readable bytes behind the text */
#define FH_JSON_DEPTH_MAX 32  /* nesting of objects and arrays; deeper is FH_ERROR_DEPTH */

typedef struct fh_json {
    const char *at, *end; /* at: next byte */
    int error;            /* first fh_error met, or FH_OK */
    uint32_t depth;
    bool first;           /* just behind a '{' or '[' */
} fh_json;

typedef struct fh_text { const char *at; size_t size; bool escaped; } fh_text; /* raw: escapes not decoded */
typedef fh_text fh_key; /* a key holding an escape equals no name */

/* Whether a key (or string) is exactly this literal. */
static inline bool fh_key_is(const fh_key *key, const char *name)
{
    size_t size = __builtin_strlen(name);
    return key->size == size && !key->escaped && __builtin_memcmp(key->at, name, size) == 0;
}

/* Hot calls are static inline below or in this header; cold ones live in fh_json.c. */
void   fh_json_open(fh_json *json, const char *text, size_t size);
int    fh_json_close(fh_json *json);             /* FH_OK only if the whole text was one value */
bool   fh_json_object(fh_json *json);            /* enter '{'; false (and error) if the value is no object */
bool   fh_json_key(fh_json *json, fh_key *key);  /* next key, its ':' consumed; false at '}' or on error */
bool   fh_json_array(fh_json *json);             /* enter '[' */
bool   fh_json_element(fh_json *json);           /* stands at the next element; false at ']' or on error */
char   fh_json_peek(fh_json *json);              /* first byte of the value ahead, not consumed; 0 on error */
bool   fh_json_string(fh_json *json, fh_text *text);
bool   fh_json_decimal(fh_json *json, fh_decimal *decimal);   /* bare or quoted number */
bool   fh_json_uint(fh_json *json, uint64_t *value);          /* bare or quoted integer, no fraction */
bool   fh_json_int(fh_json *json, int64_t *value);
bool   fh_json_bool(fh_json *json, bool *value);
bool   fh_json_null(fh_json *json);              /* consumes null and answers true; else consumes nothing */
bool   fh_json_skip(fh_json *json);              /* any value, validated as JSON */
bool   fh_json_raw(fh_json *json, fh_text *text);/* any value, skipped; text spans it (decode it later) */
bool   fh_json_time_ms(fh_json *json, uint64_t *ns);   /* epoch ms, bare or quoted, checked range */
bool   fh_json_time_iso(fh_json *json, uint64_t *ns);  /* "2026-08-24T22:21:57.110183Z" */
bool   fh_json_double(fh_json *json, double *value);   /* analytics only (greeks), never prices */

#endif
