/* SPDX-License-Identifier: Apache-2.0
 * shim.c: the ring, state, counters and readers as plain functions, for ctypes. Numbers in, numbers out. */
#include "include/feedhandler_feed.h"
#include "fh_counters.h"
#include "fh_ring.h"
#include "fh_state.h"
#include <stdlib.h>

fh_writer *t_writer_create(int dir_fd, uint32_t worker, uint64_t slots, int *result)
{
    fh_writer *writer = calloc(1, sizeof *writer);
    *result = fh_ring_create(writer, dir_fd, worker, slots, 7);
    if (*result == FH_OK)
        return writer;
    free(writer);
    return NULL;
}

fh_writer *t_writer_resume(int dir_fd, uint32_t worker, int *result)
{
    fh_writer *writer = calloc(1, sizeof *writer);
    *result = fh_ring_resume(writer, dir_fd, worker);
    if (*result == FH_OK)
        return writer;
    free(writer);
    return NULL;
}

/* Leave as a killed process does: no close, no state; the kernel unmaps and frees the lock. */
void t_writer_die(fh_writer *writer)
{
    munmap(writer->ring, writer->ring->file.total_size);
    close(writer->fd);
    free(writer);
}

void t_writer_close(fh_writer *writer)
{
    fh_ring_close(writer);
    free(writer);
}

void t_put(fh_writer *writer, uint32_t instrument, int kind, int flags, const int64_t *word)
{
    fh_record record = {.ts_recv_ns = writer->position, .instrument = instrument, .kind = (uint8_t)kind, .flags = (uint8_t)flags};
    memcpy(record.body.word, word, sizeof record.body.word);
    fh_ring_put(writer, &record);
}

/* The same record through the slot in place. */
void t_put_slot(fh_writer *writer, uint32_t instrument, int kind, int flags, const int64_t *word)
{
    fh_record *slot = fh_ring_slot(writer);
    slot->ts_recv_ns = writer->position;
    slot->ts_event_ns = 0;
    slot->instrument = instrument;
    slot->kind = (uint8_t)kind;
    slot->flags = (uint8_t)flags;
    slot->session = 0;
    memcpy(slot->body.word, word, sizeof slot->body.word);
    fh_ring_commit(writer);
}

/* Store into the next slot what a writer killed before its commit leaves. */
void t_put_torn(fh_writer *writer)
{
    fh_record *slot = fh_ring_slot(writer);
    memset(&slot->ts_recv_ns, 0xee, 24);
}

void t_put_many(fh_writer *writer, uint64_t count)
{
    fh_record record = {.instrument = 1, .kind = FH_TRADE, .flags = FH_LAST};
    for (uint64_t i = 0; i < count; i++) {
        record.body.word[0] = (int64_t)writer->position;
        fh_ring_put(writer, &record);
    }
    fh_ring_flush(writer);
}

void t_flush(fh_writer *writer) { fh_ring_flush(writer); }
void t_wake(fh_writer *writer, uint64_t ahead_ns) { fh_ring_wake(writer, fh_clock_mono_ns() + ahead_ns); }
void t_waiting(fh_writer *writer, fh_table *readers) { writer->waiting = &((fh_readers *)readers->file)->waiting[writer->ring->worker]; }
void t_heartbeat(fh_writer *writer, int64_t age_ns) { fh_ring_heartbeat(writer, fh_clock_mono_ns() - (uint64_t)age_ns); }
uint64_t t_position(const fh_writer *writer) { return writer->position; }
uint64_t t_wake_count(const fh_writer *writer) { return writer->wake_count; }
fh_ring *t_ring(const fh_writer *writer) { return writer->ring; }

fh_ring_reader *t_reader(const char *path, int *result, char *error, size_t error_size)
{
    fh_ring_reader *reader = calloc(1, sizeof *reader);
    *result = fh_ring_map(reader, path, error, error_size);
    if (*result == FH_FEED_OK)
        return reader;
    free(reader);
    return NULL;
}

void t_reader_close(fh_ring_reader *reader)
{
    fh_ring_unmap(reader);
    free(reader);
}

/* numbers: position, lost, dropped. */
void t_reader_numbers(const fh_ring_reader *reader, uint64_t *numbers)
{
    numbers[0] = reader->position;
    numbers[1] = reader->lost;
    numbers[2] = reader->dropped;
}

int t_batch(fh_ring_reader *reader, fh_record *out, size_t max, size_t *count, uint64_t *lost)
{
    const fh_record *first;
    int result = fh_ring_batch(reader, &first, count, lost);
    if (result == FH_FEED_OK) {
        *count = *count < max ? *count : max;
        fh_copy(out, first, *count * sizeof *out);
    }
    return result;
}

int t_advance(fh_ring_reader *reader, size_t count) { return fh_ring_advance(reader, count); }

int t_poll(fh_ring_reader *reader, fh_record *out, size_t max, size_t *count, uint64_t *lost)
{
    return fh_ring_poll(reader, out, max, count, lost);
}

fh_table *t_table(int dir_fd, const char *name, uint64_t magic, uint32_t row_size, uint32_t row_max, int create, int *result)
{
    fh_table *table = calloc(1, sizeof *table);
    *result = create ? fh_table_create(table, dir_fd, name, magic, row_size, row_max, 7)
                     : fh_table_open(table, dir_fd, name, magic, row_size);
    if (*result == FH_OK)
        return table;
    free(table);
    return NULL;
}

void t_table_close(fh_table *table)
{
    fh_table_close(table);
    free(table);
}

fh_state_row *t_row(fh_table *table, uint32_t index) { return (fh_state_row *)(void *)table->rows + index; }
fh_instrument *t_instrument(fh_table *table, uint32_t index) { return (fh_instrument *)(void *)table->rows + index; }

/* Publish an L1 and a book whose every number derives from value. levels a side. */
void t_state_put(fh_state_row *row, uint64_t position, int64_t value, uint32_t levels)
{
    fh_level level[2][64];
    for (uint32_t i = 0; i < levels; i++) /* best last */
        level[0][i] = level[1][i] = (fh_level){value + (int64_t)i, value};
    fh_book book = {.bid = {level[0], levels, 64}, .ask = {level[1], levels, 64}};
    fh_state_book head = {.position = position, .sequence = (uint64_t)value};
    fh_state_l1 l1 = {.position = position, .bid_price = value, .ask_size = value, .open_interest = value};
    fh_state_put_l1(row, &l1);
    fh_state_put_book(row, &book, &head);
}

uint32_t t_mark_stale(fh_table *table, uint32_t worker, uint64_t position) { return fh_state_mark_stale(table, worker, position); }
void t_give(fh_state_row *row, uint32_t worker) { fh_state_give(row, worker); }
int t_read_l1(const fh_state_row *row, fh_state_l1 *out) { return fh_state_read_l1(row, out); }
int t_read_book(const fh_state_row *row, fh_state_book *out) { return fh_state_read_book(row, out); }

fh_feed *t_feed(const char *name, int *result, char *error, size_t error_size)
{
    fh_feed *feed = calloc(1, sizeof *feed);
    *result = fh_feed_open(feed, name, error, error_size);
    if (*result == FH_FEED_OK)
        return feed;
    free(feed);
    return NULL;
}

int t_feed_poll(fh_feed *feed, fh_record *out, size_t max, size_t *count, uint32_t *worker, uint64_t *lost)
{
    fh_feed_news news;
    int result = fh_feed_poll(feed, out, max, &news);
    *count = news.count;
    *worker = news.worker;
    *lost = news.lost;
    return result;
}

void t_feed_wait(fh_feed *feed, uint64_t timeout_ns) { fh_feed_wait(feed, timeout_ns); }
void t_feed_look(fh_feed *feed) { feed->looked_ns = 0; }

int64_t t_feed_find(const fh_feed *feed, const char *venue, const char *canonical)
{
    const fh_instrument *row = fh_feed_find(feed, venue, canonical);
    return row == NULL ? -1 : (int64_t)row->id;
}

void t_feed_close(fh_feed *feed)
{
    fh_feed_close(feed);
    free(feed);
}
