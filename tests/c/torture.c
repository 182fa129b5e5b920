/* SPDX-License-Identifier: Apache-2.0
 * torture.c <directory> <records>: threads over one shared mapping: a writer, a reader at the tip, a reader of spans and a
 * reader of one state row. Every word is checked. Exit 0: all was whole, in order and counted. */
#include "include/feedhandler_feed.h"
#include "fh_ring.h"
#include "fh_state.h"
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>

static fh_writer writer;
static fh_table table;
static uint64_t record_max;
static uint32_t done, failed;
static const char *directory;

static void fail(const char *what, uint64_t position)
{
    fprintf(stderr, "%s at %lu\n", what, (unsigned long)position);
    __atomic_store_n(&failed, 1u, __ATOMIC_RELAXED);
}

static void *write_all(void *unused)
{
    (void)unused;
    fh_level level = {1, 1};
    fh_book book = {.bid = {&level, 1, 1}};
    for (uint32_t event = 0; writer.position < record_max; event++) {
        uint32_t size = 1 + event % 4;
        for (uint32_t i = 0; i < size; i++) {
            int64_t at = (int64_t)writer.position;
            fh_record record = {.ts_recv_ns = (uint64_t)at, .ts_event_ns = (uint64_t)at, .instrument = i, .kind = FH_LEVEL,
                                .flags = i + 1 == size ? FH_LAST : 0, .body.word = {at, at, at, at}};
            if (event % 97 == 0 && size == 1) {
                record.kind = FH_STATUS;
                record.body.status.code = FH_INSTRUMENT_CHANGED;
            }
            fh_ring_put(&writer, &record);
        }
        fh_state_l1 l1 = {.position = writer.position, .bid_price = (int64_t)event, .open_interest = (int64_t)event};
        level.price = level.size = event;
        fh_state_book head = {.position = writer.position, .sequence = event};
        fh_state_put_l1((fh_state_row *)(void *)table.rows, &l1);
        fh_state_put_book((fh_state_row *)(void *)table.rows, &book, &head);
        if (event % 5 == 0)
            fh_ring_flush(&writer);
        if (event % 64 == 0)
            sched_yield();
    }
    fh_ring_flush(&writer);
    __atomic_store_n(&done, 1u, __ATOMIC_RELEASE);
    return NULL;
}

static void check_records(const fh_record *record, size_t count, uint64_t position)
{
    for (size_t i = 0; i < count; i++) {
        uint64_t at = position + i;
        int64_t word = record[i].kind == FH_STATUS ? (int64_t)at : record[i].body.word[0];
        if (record[i].commit != at + 1 || record[i].ts_recv_ns != at || record[i].ts_event_ns != at || word != (int64_t)at
            || record[i].body.word[1] != (int64_t)at || record[i].body.word[2] != (int64_t)at
            || record[i].body.word[3] != (int64_t)at || record[i].instrument > 3)
            return fail("torn record", at);
        if (i + 1 < count && record[i + 1].instrument != ((record[i].flags & FH_LAST) ? 0 : record[i].instrument + 1))
            return fail("record out of its event", at);
    }
    if (count > 0 && (record[0].instrument != 0 || !(record[count - 1].flags & FH_LAST)))
        fail("event in part", position);
}

/* how: 0 copies at the tip, 1 uses spans in place. */
static void *read_all(void *how)
{
    char path[300], error[400];
    static __thread fh_record out[2048];
    fh_ring_reader reader;
    uint64_t seen = 0, lost_sum = 0, lost = 0;
    snprintf(path, sizeof path, "%s/worker-0.ring", directory);
    if (fh_ring_map(&reader, path, error, sizeof error) != FH_FEED_OK) {
        fail(error, 0);
        return NULL;
    }
    uint64_t start = reader.position;
    for (int idle_after_end = 0; idle_after_end < 2;) {
        size_t count = 0;
        const fh_record *first = NULL;
        int finished = (int)__atomic_load_n(&done, __ATOMIC_ACQUIRE);
        int result = how == NULL ? fh_ring_poll(&reader, out, 2048, &count, &lost)
                                 : fh_ring_batch(&reader, &first, &count, &lost);
        if (result == FH_FEED_LAPPED)
            lost_sum += lost;
        if (result == FH_FEED_OK && how != NULL) {
            count = count < 2048 ? count : 2048;
            while (count > 0 && !(fh_load_relaxed(&first[count - 1].flags) & FH_LAST))
                count--;
            fh_copy(out, first, count * sizeof *out);
            uint64_t position = reader.position;
            if (!fh_ring_advance(&reader, count))
                continue;
            check_records(out, count, position);
        } else if (result == FH_FEED_OK)
            check_records(out, count, reader.position - count);
        seen += result == FH_FEED_OK ? count : 0;
        idle_after_end += finished && result == FH_FEED_EMPTY;
        if (result == FH_FEED_EMPTY)
            sched_yield();
    }
    if (start + seen + lost_sum != writer.position)
        fail("records are neither seen nor lost", start + seen + lost_sum);
    fh_ring_unmap(&reader);
    return NULL;
}

static void *read_state(void *unused)
{
    (void)unused;
    fh_state_l1 l1;
    fh_state_book book;
    const fh_state_row *row = (const fh_state_row *)(const void *)table.rows;
    int64_t newest = 0;
    while (!__atomic_load_n(&done, __ATOMIC_ACQUIRE)) {
        if (fh_state_read_l1(row, &l1) == FH_FEED_OK) {
            if (l1.bid_price != l1.open_interest || l1.bid_price < newest)
                fail("torn or older state row", l1.position);
            newest = l1.bid_price;
        }
        if (fh_state_read_book(row, &book) == FH_FEED_OK
            && (book.bid[0].price != (int64_t)book.sequence || book.bid[0].size != (int64_t)book.sequence))
            fail("torn book row", book.position);
    }
    return NULL;
}

int main(int count, char **argument)
{
    pthread_t thread[4];
    if (count != 3)
        return 2;
    directory = argument[1];
    record_max = strtoull(argument[2], NULL, 10);
    int dir_fd = open(directory, O_RDONLY | O_DIRECTORY);
    if (fh_ring_create(&writer, dir_fd, 0, 1024, 1) != FH_OK
        || fh_table_create(&table, dir_fd, "state", FH_MAGIC_STATE, sizeof(fh_state_row), 1, 1) != FH_OK)
        return 3;
    pthread_create(&thread[0], NULL, read_all, NULL);
    pthread_create(&thread[1], NULL, read_all, &writer);
    pthread_create(&thread[2], NULL, read_state, NULL);
    pthread_create(&thread[3], NULL, write_all, NULL);
    for (int i = 0; i < 4; i++)
        pthread_join(thread[i], NULL);
    fh_ring_close(&writer);
    fh_table_close(&table);
    return (int)failed;
}
