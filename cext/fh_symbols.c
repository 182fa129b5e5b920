/* SPDX-License-Identifier: Apache-2.0 */
#include "fh_symbols.h"
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include "fh_error.h"

/* One symbol, one cache line. size 0: empty. */
typedef struct entry {
    uint32_t instrument, hash;
    uint8_t size;
    char text[FH_SYMBOL_SIZE_MAX];
    uint8_t pad0[7];
} entry;
_Static_assert(sizeof(entry) == 64, "a symbol is one cache line");

struct fh_symbols {
    entry *entries;
    uint32_t mask, count, max;
};

fh_symbols *fh_symbols_new(uint32_t symbol_max)
{
    uint64_t slot_count = 8;
    while (slot_count < 2 * (uint64_t)symbol_max) slot_count *= 2;
    fh_symbols *symbols = calloc(1, sizeof *symbols);
    entry *entries = slot_count <= UINT32_MAX ? aligned_alloc(64, slot_count * sizeof *entries) : NULL;
    if (!symbols || !entries) {
        free(symbols);
        free(entries);
        return NULL;
    }
    memset(entries, 0, slot_count * sizeof *entries);
    *symbols = (fh_symbols){ .entries = entries, .mask = (uint32_t)slot_count - 1, .max = symbol_max };
    return symbols;
}

void fh_symbols_free(fh_symbols *symbols)
{
    if (symbols) free(symbols->entries);
    free(symbols);
}

/* A symbol below 8 bytes as one word; never more than size bytes are read: two halves that overlap, or one byte after another. */
static inline uint64_t short_word(const char *text, size_t size)
{
    uint32_t low = 0, high = 0;
    if (size >= 4) {
        memcpy(&low, text, 4);
        memcpy(&high, text + size - 4, 4);
    } else {
        for (size_t index = 0; index < size; index++) low = low << 8 | (unsigned char)text[index];
    }
    return (uint64_t)high << 32 | low;
}

/* 8 bytes from index, or the last 8: they overlap those before. */
static inline uint64_t long_word(const char *text, size_t size, size_t index)
{
    uint64_t word;
    memcpy(&word, text + (index + 8 <= size ? index : size - 8), 8);
    return word;
}

static inline uint32_t hash_of(const char *text, size_t size)
{
    uint64_t hash = size * 0x9e3779b97f4a7c15ull;
    if (size < 8) {
        hash = (hash ^ short_word(text, size)) * 0xff51afd7ed558ccdull;
    } else {
        for (size_t index = 0; index < size; index += 8) {
            hash = (hash ^ long_word(text, size, index)) * 0xff51afd7ed558ccdull;
            hash ^= hash >> 32;
        }
    }
    return (uint32_t)(hash >> 32);
}

static inline bool same(const char *one, const char *other, size_t size)
{
    if (size < 8) return short_word(one, size) == short_word(other, size);
    uint64_t difference = 0;
    for (size_t index = 0; index < size; index += 8)
        difference |= long_word(one, size, index) ^ long_word(other, size, index);
    return difference == 0;
}

/* The symbol's entry, or the empty one it would take: at half load there is always an empty one. */
static inline entry *find(const fh_symbols *symbols, const char *text, size_t size, uint32_t hash)
{
    for (uint32_t index = hash & symbols->mask;; index = (index + 1) & symbols->mask) {
        entry *at = &symbols->entries[index];
        if (at->size == 0) return at;
        if (at->hash == hash && at->size == size && same(at->text, text, size)) return at;
    }
}

int fh_symbols_put(fh_symbols *symbols, const char *text, size_t size, uint32_t instrument)
{
    if (size == 0 || size > FH_SYMBOL_SIZE_MAX || instrument == FH_INSTRUMENT_NONE) return FH_ERROR_RANGE;
    uint32_t hash = hash_of(text, size);
    entry *at = find(symbols, text, size, hash);
    if (at->size == 0) {
        if (symbols->count == symbols->max) return FH_ERROR_FULL;
        symbols->count++;
        at->size = (uint8_t)size;
        at->hash = hash;
        memcpy(at->text, text, size);
    }
    at->instrument = instrument;
    return FH_OK;
}

uint32_t fh_symbols_get(const fh_symbols *symbols, const char *text, size_t size)
{
    if (size == 0 || size > FH_SYMBOL_SIZE_MAX) return FH_INSTRUMENT_NONE;
    const entry *at = find(symbols, text, size, hash_of(text, size));
    return at->size ? at->instrument : FH_INSTRUMENT_NONE;
}
