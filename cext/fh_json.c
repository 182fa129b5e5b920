/* SPDX-License-Identifier: Apache-2.0 */
#include "fh_json.h"

bool fh_json_fail(fh_json *json, int error)
{
    if (!json->error) json->error = error;
    json->at = json->end; /* no later call finds a byte */
    return false;
}

static bool malformed(fh_json *json) { return fh_json_fail(json, FH_ERROR_MALFORMED); }

static void skip_space(fh_json *json)
{
    while (json->at < json->end && (*json->at == ' ' || *json->at == '\n' || *json->at == '\r' || *json->at == '\t'))
        json->at++;
}

/* The byte ahead, or 0 at the end of the text. */
static char next_byte(fh_json *json)
{
    skip_space(json);
    return json->at < json->end ? *json->at : 0;
}

static bool take_byte(fh_json *json, char byte)
{
    if (next_byte(json) != byte) return false;
    json->at++;
    return true;
}

void fh_json_open(fh_json *json, const char *text, size_t size)
{
    *json = (fh_json){ .at = text, .end = text + size, .error = size ? FH_OK : FH_ERROR_MALFORMED };
}

int fh_json_close(fh_json *json)
{
    skip_space(json);
    if (json->depth != 0 || json->at != json->end) malformed(json);
    return json->error;
}

bool fh_json_enter_slow(fh_json *json, char bracket)
{
    if (!take_byte(json, bracket)) return malformed(json);
    if (json->depth == FH_JSON_DEPTH_MAX) return fh_json_fail(json, FH_ERROR_DEPTH);
    json->depth++;
    json->first = true;
    return true;
}

bool fh_json_key_slow(fh_json *json, fh_key *key)
{
    char byte = next_byte(json);
    if (byte == '}') return fh_json_leave(json);
    if (!json->first && !take_byte(json, ',')) return malformed(json);
    json->first = false;
    if (next_byte(json) != '"' || !fh_json_string_slow(json, key)) return malformed(json);
    return take_byte(json, ':') || malformed(json);
}

bool fh_json_element_slow(fh_json *json)
{
    char byte = next_byte(json);
    if (byte == ']') return fh_json_leave(json);
    if (!json->first && !take_byte(json, ',')) return malformed(json);
    json->first = false;
    byte = next_byte(json);
    return (byte != 0 && byte != ']') || malformed(json);
}

char fh_json_peek_slow(fh_json *json)
{
    char byte = next_byte(json);
    if (byte == 0) malformed(json);
    return byte;
}

/* Behind the escape whose backslash stands at `at`, or NULL. */
static const char *escape_end(const char *at, const char *end)
{
    if (end - at < 2 || !memchr("\"\\/bfnrtu", at[1], 9)) return NULL;
    if (at[1] != 'u') return at + 2;
    if (end - at < 6) return NULL;
    for (int index = 2; index < 6; index++) {
        unsigned char byte = (unsigned char)at[index];
        if ((unsigned char)(byte - '0') > 9 && (unsigned char)((byte | 0x20) - 'a') > 5) return NULL;
    }
    return at + 6;
}

/* The closing quote of a string whose first byte is at `at`, or NULL. */
static const char *string_end(const char *at, const char *end, bool *escaped)
{
    *escaped = false;
    while (at < end) {
        unsigned size = fh_scan_special(at);
        at += size;
        if (size == 16) continue;
        if (at >= end) return NULL;
        if (*at == '"') return at;
        if (*at != '\\' || !(at = escape_end(at, end))) return NULL;
        *escaped = true;
    }
    return NULL;
}

bool fh_json_string_slow(fh_json *json, fh_text *text)
{
    if (!take_byte(json, '"')) return malformed(json);
    const char *end = string_end(json->at, json->end, &text->escaped);
    if (!end) return malformed(json);
    text->at = json->at;
    text->size = (size_t)(end - json->at);
    json->at = end + 1;
    return true;
}

/* The bytes of a number, bare or between quotes, consumed but not yet checked. */
static bool number_text(fh_json *json, fh_text *text)
{
    if (next_byte(json) == '"') return fh_json_string_slow(json, text); /* an escape is no number */
    const char *at = json->at;
    while (at < json->end && (((unsigned char)(*at - '0') <= 9) || memchr("+-.eE", *at, 5))) at++;
    *text = (fh_text){ json->at, (size_t)(at - json->at), false };
    json->at = at;
    return true;
}

bool fh_json_decimal_slow(fh_json *json, fh_decimal *decimal)
{
    fh_text text;
    if (!number_text(json, &text)) return false;
    return fh_decimal_parse(text.at, text.size, decimal) == FH_OK || malformed(json);
}

/* An integer: its sign and magnitude. Anything else that is a number is out of range. */
static bool integer(fh_json *json, bool *negative, uint64_t *magnitude)
{
    fh_text text;
    fh_decimal decimal;
    if (!number_text(json, &text)) return false;
    if (fh_decimal_parse(text.at, text.size, &decimal) != FH_OK) return malformed(json);
    *negative = *text.at == '-';
    *magnitude = 0;
    for (size_t index = *negative; index < text.size; index++) {
        unsigned digit = (unsigned char)(text.at[index] - '0');
        if (digit > 9 || __builtin_mul_overflow(*magnitude, 10, magnitude)
            || __builtin_add_overflow(*magnitude, digit, magnitude)) return fh_json_fail(json, FH_ERROR_RANGE);
    }
    return true;
}

bool fh_json_uint_slow(fh_json *json, uint64_t *value)
{
    bool negative;
    if (!integer(json, &negative, value)) return false;
    return !(negative && *value) || fh_json_fail(json, FH_ERROR_RANGE);
}

bool fh_json_int(fh_json *json, int64_t *value)
{
    bool negative;
    uint64_t magnitude;
    if (!integer(json, &negative, &magnitude)) return false;
    if (magnitude > (uint64_t)INT64_MAX + negative) return fh_json_fail(json, FH_ERROR_RANGE);
    *value = (int64_t)(negative ? 0 - magnitude : magnitude);
    return true;
}

static bool take_word(fh_json *json, const char *word)
{
    size_t size = strlen(word);
    skip_space(json);
    if ((size_t)(json->end - json->at) < size || memcmp(json->at, word, size) != 0) return false;
    json->at += size;
    return true;
}

bool fh_json_bool(fh_json *json, bool *value)
{
    *value = take_word(json, "true");
    return *value || take_word(json, "false") || malformed(json);
}

bool fh_json_null(fh_json *json) { return take_word(json, "null"); }
bool fh_json_absent(fh_json *json) { return take_word(json, "null") || take_word(json, "\"\""); }

/* A value that is no container. */
static bool skip_scalar(fh_json *json, char first)
{
    fh_text text;
    fh_decimal decimal;
    if (first == '"') return fh_json_string(json, &text);
    if (first == 't') return take_word(json, "true") || malformed(json);
    if (first == 'f') return take_word(json, "false") || malformed(json);
    if (first == 'n') return take_word(json, "null") || malformed(json);
    return fh_json_decimal(json, &decimal);
}

bool fh_json_skip_slow(fh_json *json)
{
    uint32_t base = json->depth;
    uint64_t objects = 0; /* bit n: the container n levels out is an object */
    _Static_assert(FH_JSON_DEPTH_MAX <= 64, "a bit a level");
    for (;;) {
        char first = fh_json_peek(json);
        if (first == '{' || first == '[') {
            objects = objects << 1 | (first == '{');
            if (!fh_json_enter(json, first)) return false;
        } else if (!skip_scalar(json, first)) {
            return false;
        }
        for (;;) { /* on to the next value, leaving what ends here */
            fh_key key;
            if (json->depth == base) return true;
            if (objects & 1 ? fh_json_key(json, &key) : fh_json_element(json)) break;
            if (json->error) return false;
            objects >>= 1;
        }
    }
}

bool fh_json_raw(fh_json *json, fh_text *text)
{
    skip_space(json);
    text->at = json->at;
    if (!fh_json_skip(json)) return false;
    text->size = (size_t)(json->at - text->at);
    text->escaped = false;
    return true;
}

/* Days from 1970-01-01 to a date of the years 1970 to 2199. Counted from March, so that a leap day is a year's last. */
static uint64_t days_from_date(unsigned year, unsigned month, unsigned day)
{
    unsigned from_march = month > 2 ? month - 3 : month + 9;
    year -= month <= 2;
    return 365u * year + year / 4 - year / 100 + year / 400 + (153 * from_march + 2) / 5 + day - 1 - 719468;
}

static bool date_is_real(unsigned year, unsigned month, unsigned day)
{
    static const uint8_t days[13] = { 0, 31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31 };
    bool leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    return month >= 1 && month <= 12 && day >= 1 && day <= days[month] + (unsigned)(leap && month == 2);
}

#define EACH_BYTE(byte) (0x0101010101010101ull * (byte))

/* Whether the first `size` (1 to 8) bytes of text are a digit wherever the pattern has a 0, and the pattern's byte elsewhere. Against the
 * pattern a digit becomes 0 to 9, which 0x76 more leaves below 0x80, and an equal byte 0. */
static inline bool has_form(const char *text, const char *pattern, unsigned size)
{
    uint64_t used = size == 8 ? ~(uint64_t)0 : ((uint64_t)1 << 8 * size) - 1;
    uint64_t form = fh_load_u64(pattern), rest = (fh_load_u64(text) ^ form) & used, apart = 0;
    for (unsigned index = 0; index < size; index++)
        if (pattern[index] != '0') apart |= (uint64_t)0xff << 8 * index;
    return (((rest + EACH_BYTE(0x76)) | rest) & EACH_BYTE(0x80)) == 0 && (rest & apart) == 0;
}

static unsigned two_digits(const char *at) { return (unsigned)(at[0] - '0') * 10 + (unsigned)(at[1] - '0'); }

/* ".110183Z" or "Z", size bytes of it, to ns. */
static bool fraction_ns(const char *at, size_t size, uint64_t *ns)
{
    *ns = 0;
    if (size == 1) return *at == 'Z';
    unsigned whole, end;
    if (size < 3 || size > 11 || *at != '.' || at[size - 1] != 'Z') return false;
    if (!fh_scan_number(at + 1, &whole, &end) || whole != size - 2) return false;
    *ns = fh_scan_digits16(at + 1, whole) * fh_power_of_ten[9 - whole];
    return true;
}

bool fh_json_time_iso(fh_json *json, uint64_t *ns)
{
    fh_text text;
    uint64_t fraction;
    if (!fh_json_string(json, &text)) return false;
    const char *at = text.at;
    if (text.size < 20 || !has_form(at, "0000-00-", 8) || !has_form(at + 8, "00T00:00", 8) || !has_form(at + 16, ":00\0\0\0\0", 3)
         || !fraction_ns(at + 19, text.size - 19, &fraction))
        return malformed(json);
    unsigned year = two_digits(at) * 100 + two_digits(at + 2), month = two_digits(at + 5), day = two_digits(at + 8);
    unsigned hour = two_digits(at + 11), minute = two_digits(at + 14), second = two_digits(at + 17);
    if (!date_is_real(year, month, day) || hour > 23 || minute > 59 || second > 59) return malformed(json);
    if (year < 1970 || year > 2199) return fh_json_fail(json, FH_ERROR_RANGE);
    uint64_t seconds = days_from_date(year, month, day) * 86400 + hour * 3600 + minute * 60 + second;
    *ns = seconds * 1000000000 + fraction;
    return true;
}

/* mantissa * 10^exponent of a checked number text; 19 digits are more than a double holds. */
static double text_to_double(const char *at, const char *end)
{
    bool negative = *at == '-', fraction = false;
    uint64_t mantissa = 0;
    int64_t exponent = 0, written = 0;
    for (at += negative; at < end && (*at | 0x20) != 'e'; at++) {
        if (*at == '.') { fraction = true; continue; }
        bool fits = mantissa < 1000000000000000000u;
        if (fits) mantissa = mantissa * 10 + (unsigned)(*at - '0');
        exponent += !fits - fraction;
    }
    bool down = at < end && at[1] == '-';
    for (at += at < end ? 1 : 0; at < end; at++)
        if ((unsigned char)(*at - '0') <= 9 && written < 1000000) written = written * 10 + (*at - '0');
    exponent += down ? -written : written;
    long double value = mantissa;
    for (; exponent > 0 && value != 0 && value < 1e400L; exponent--) value *= 10;
    for (; exponent < 0 && value > 1e-400L; exponent++) value /= 10;
    return (double)(negative ? -value : value);
}

bool fh_json_double(fh_json *json, double *value)
{
    fh_text text;
    fh_decimal decimal;
    if (!number_text(json, &text)) return false;
    if (fh_decimal_parse(text.at, text.size, &decimal) != FH_OK) return malformed(json);
    *value = text_to_double(text.at, text.at + text.size);
    return __builtin_isfinite(*value) || fh_json_fail(json, FH_ERROR_RANGE);
}
