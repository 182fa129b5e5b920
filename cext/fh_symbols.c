/* SPDX-License-Identifier: Apache-2.0 */
#include "fh_symbols.h"
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

/* Reads size bytes and no more: 8 at a time, the last 8 overlapping those before. */
static uint32_t hash_of(const char *text, size_t size)
{
    uint64_t hash = size * 0x9e3779b97f4a7c15ull, word = 0;
    if (size < 8) {
        for (size_t index = 0; index < size; index++) word = word << 8 | (unsigned char)text[index];
        hash = (hash ^ word) * 0xff51afd7ed558ccdull;
    } else {
        for (size_t index = 0; index < size; index += 8) {
            memcpy(&word, text + (index + 8 <= size ? index : size - 8), 8);
            hash = (hash ^ word) * 0xff51afd7ed558ccdull;
            hash ^= hash >> 32;
        }
    }
    return (uint32_t)(hash >> 32);
}

/* The symbol's entry, or the empty one it would take: at half load there is always an empty one. */
static entry *find(const fh_symbols *symbols, const char *text, size_t size, uint32_t hash)
{
    for (uint32_t index = hash & symbols->mask;; index = (index + 1) & symbols->mask) {
        entry *at = &symbols->entries[index];
        if (at->size == 0) return at;
        if (at->hash == hash && at->size == size && memcmp(at->text, text, size) == 0) return at;
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
