/* SPDX-License-Identifier: Apache-2.0
 * What:    every frame of a file, its cuts and seeded corruptions, through the cursor, the level rows and the scaling;
 *          then a seeded run of book changes. Prints one digest of all answers.
 * Why:     run under address and undefined-behaviour sanitizers it shows that no input reads or computes out of bounds;
 *          run on several builds, equal digests show that SSE2 and portable code agree.
 * Sizes:   the file's frames (u32 size, bytes), each in a heap block of its size and FH_JSON_PAD bytes; argv[2] rounds.
 * Failure: a sanitizer report is a bug in cext/; unequal digests are two builds that read one text differently. */
#include <stdio.h>
#include <stdlib.h>
#include "fh_batch.h"
#include "fh_book.h"

int probe_walk(const char *text, size_t size, char *dump_bytes, size_t *dump_size);
int probe_skip(const char *text, size_t size);
int probe_value(const char *call, const char *text, size_t size, void *answer);
int probe_levels(const char *text, size_t size, int skip, int count_index, const char *price_key, const char *size_key,
                 fh_change *changes, uint32_t *count);
int probe_scale(fh_change *changes, uint32_t count, int price_exponent, int size_exponent, int accept, int64_t wanted[3]);

static uint64_t digest = 14695981039346656037ull, state = 88172645463325252ull;
static char dump[1 << 22];
static fh_change changes[64];

static uint64_t draw(void)
{
    state ^= state << 13;
    state ^= state >> 7;
    return state ^= state << 17;
}

static void add(const void *bytes, size_t size)
{
    for (size_t index = 0; index < size; index++) digest = (digest ^ ((const unsigned char *)bytes)[index]) * 1099511628211ull;
}

static void add_answer(int answer) { add(&answer, sizeof answer); }

static void run_levels(const char *text, size_t size, int skip, int count_index, const char *price_key, const char *size_key)
{
    uint32_t count = 64;
    int64_t wanted[3];
    add_answer(probe_levels(text, size, skip, count_index, price_key, size_key, changes, &count));
    add_answer(probe_scale(changes, count, -2, -3, 0, wanted));
    add(changes, count * sizeof *changes);
}

/* One text in a block of exactly its size and the padding, which holds `behind`. */
static void run_text(const char *text, size_t size, const char *behind)
{
    static const char *const calls[] = { "uint", "int", "time_ms", "time_iso", "double", "bool", "null", "absent" };
    char *block = malloc(size + FH_JSON_PAD);
    size_t dump_size = sizeof dump;
    if (!block) exit(2);
    memcpy(block, text, size);
    memcpy(block + size, behind, FH_JSON_PAD);
    int walked = probe_walk(block, size, dump, &dump_size);
    add_answer(walked);
    if (!walked) add(dump, dump_size); /* what was seen before an error counts for nothing, and may differ by a token */
    add_answer(probe_skip(block, size));
    for (size_t index = 0; index < sizeof calls / sizeof *calls; index++) {
        uint64_t answer = 0;
        int error = probe_value(calls[index], block, size, &answer);
        add_answer(error);
        if (!error) add(&answer, sizeof answer);
    }
    run_levels(block, size, 0, 3, NULL, NULL);
    run_levels(block, size, 1, 0, NULL, NULL);
    run_levels(block, size, 0, 0, "price", "qty");
    free(block);
}

static void run_frame(const char *frame, size_t size, int rounds)
{
    static const char spice[] = "\"\\{}[],:0123456789.eE+-truefalsn \n\x01\xff";
    char behind[FH_JSON_PAD], *copy = malloc(size + 1);
    if (!copy) exit(2);
    for (size_t index = 0; index < FH_JSON_PAD; index++) behind[index] = size ? frame[index % size] : 0;
    run_text(frame, size, behind);
    for (int round = 0; round < rounds && size; round++) {
        size_t cut = draw() % size;
        for (size_t index = 0; index < FH_JSON_PAD; index++) behind[index] = frame[(cut + index) % size];
        run_text(frame, cut, behind);
        memcpy(copy, frame, size);
        for (uint64_t left = 1 + draw() % 3; left; left--) {
            char byte = draw() & 1 ? spice[draw() % (sizeof spice - 1)] : (char)draw();
            copy[draw() % size] = byte;
        }
        run_text(copy, size, behind);
    }
    free(copy);
}

static void run_book(int operations)
{
    fh_book book;
    if (fh_book_init(&book, 100)) exit(2);
    for (int index = 0; index < operations; index++) {
        int64_t price = (int64_t)(draw() % 300) - 150, size = (int64_t)(draw() % 3);
        add_answer(fh_book_set(&book, draw() & 1 ? FH_BID : FH_ASK, price, size));
        if (index % 1000 == 0) fh_book_truncate(&book, 50);
        uint32_t crc = fh_book_crc_kraken(&book, 0, 0) ^ fh_book_crc_okx(&book, 1, 8);
        if (index % 64 == 0) add(&crc, sizeof crc);
    }
    add_answer(fh_book_rescale(&book, 3, 3) + 2 * fh_book_rescale(&book, 18, 18));
    add(book.bid.level, book.bid.count * sizeof(fh_level));
    fh_book_free(&book);
}

int main(int argc, char **argv)
{
    uint32_t size;
    FILE *file = argc == 3 ? fopen(argv[1], "rb") : NULL;
    if (!file) return 2;
    while (fread(&size, sizeof size, 1, file) == 1) {
        char *frame = malloc(size + 1);
        if (!frame || fread(frame, 1, size, file) != size) return 2;
        run_frame(frame, size, atoi(argv[2]));
        free(frame);
    }
    fclose(file);
    run_book(20000);
    printf("%016llx\n", (unsigned long long)digest);
    return 0;
}
