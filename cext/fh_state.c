/* SPDX-License-Identifier: Apache-2.0 */
#include "fh_state.h"
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include "fh_file.h"

#define FH_TABLE_HEAD 4096u
#define FH_TABLE_ROWS_MAX (1u << 20)

int fh_table_create(fh_table *table, int dir_fd, const char *name, uint64_t magic, uint32_t row_size, uint32_t row_max,
                    uint64_t generation)
{
    void *map;
    if (row_max == 0 || row_max > FH_TABLE_ROWS_MAX || row_size == 0 || row_size % FH_CACHE_LINE != 0)
        return FH_ERROR_RANGE;
    table->size = FH_TABLE_HEAD + (uint64_t)row_size * row_max;
    int result = fh_file_create(dir_fd, name, table->size, &table->fd, &map);
    if (result != FH_OK)
        return result;
    table->file = (fh_file *)map;
    table->rows = (char *)map + FH_TABLE_HEAD;
    table->row_max = row_max;
    table->file->row_size = row_size;
    table->file->row_max = row_max;
    fh_file_seal(table->file, magic, FH_TABLE_HEAD, table->size, generation);
    return FH_OK;
}

int fh_table_open(fh_table *table, int dir_fd, const char *name, uint64_t magic, uint32_t row_size)
{
    void *map;
    int result = fh_file_open(dir_fd, name, magic, 1, &table->fd, &map, &table->size);
    if (result != FH_OK)
        return result;
    const fh_file *file = (const fh_file *)map;
    if (file->header_size != FH_TABLE_HEAD || file->row_size != row_size || file->row_max == 0
        || file->row_max > FH_TABLE_ROWS_MAX || table->size != FH_TABLE_HEAD + (uint64_t)row_size * file->row_max) {
        fh_file_close(table->fd, map, table->size);
        return FH_ERROR_MALFORMED;
    }
    table->file = (fh_file *)map;
    table->rows = (char *)map + FH_TABLE_HEAD;
    table->row_max = file->row_max;
    return FH_OK;
}

int fh_readers_open(fh_table *table, int dir_fd)
{
    struct stat status;
    table->file = NULL;
    table->size = FH_TABLE_HEAD + FH_READER_MAX * sizeof(fh_reader_slot);
    table->fd = openat(dir_fd, "readers", O_RDWR | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
    if (table->fd < 0)
        return FH_ERROR_SYSTEM;
    void *map = MAP_FAILED;
    if (fstat(table->fd, &status) == 0 && S_ISREG(status.st_mode) && status.st_size == (off_t)table->size)
        map = mmap(NULL, table->size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, table->fd, 0);
    if (map == MAP_FAILED) {
        fh_file_close(table->fd, NULL, 0);
        table->fd = -1;
        return FH_ERROR_MALFORMED;
    }
    table->file = (fh_file *)map;
    table->rows = (char *)map + FH_TABLE_HEAD;
    table->row_max = FH_READER_MAX;
    return FH_OK;
}

void fh_table_close(fh_table *table)
{
    if (table->file == NULL)
        return;
    fh_file_close(table->fd, table->file, table->size);
    table->file = NULL;
    table->fd = -1;
}

/* The copy to fill next. Release fence: whoever sees a byte stored into it also sees the latch that made it the spare one.
 * Pairs with the acquire fence before the second latch load in fh_state_read(). */
static unsigned fh_latch_begin(const uint64_t *latch)
{
    fh_fence_release();
    return (unsigned)(fh_load_relaxed(latch) + 1) & 1u;
}

/* Release: who sees the new latch sees the copy it names. Pairs with the first latch load in fh_state_read(). */
static void fh_latch_flip(uint64_t *latch)
{
    fh_store_release(latch, fh_load_relaxed(latch) + 1);
}

void fh_state_put_l1(fh_state_row *row, const fh_state_l1 *value)
{
    fh_copy(&row->l1[fh_latch_begin(&row->latch_l1)], value, sizeof *value);
    fh_latch_flip(&row->latch_l1);
}

/* Best first, out of an array that keeps its best last. */
static uint16_t fh_state_side(fh_level *top, const fh_side_array *side)
{
    uint32_t count = side->count < FH_BOOK_TOP ? side->count : FH_BOOK_TOP;
    for (uint32_t i = 0; i < count; i++)
        top[i] = side->level[side->count - 1 - i];
    memset(top + count, 0, (FH_BOOK_TOP - count) * sizeof *top);
    return (uint16_t)count;
}

void fh_state_put_book(fh_state_row *row, const fh_book *book, const fh_state_book *head)
{
    _Static_assert(sizeof head->bid[0] == sizeof(fh_level), "a level of state is a level of a book");
    fh_state_book value;
    memcpy(&value, head, offsetof(fh_state_book, bid));
    value.bid_count = fh_state_side((fh_level *)(void *)value.bid, &book->bid);
    value.ask_count = fh_state_side((fh_level *)(void *)value.ask, &book->ask);
    fh_copy(&row->book[fh_latch_begin(&row->latch_book)], &value, sizeof value);
    fh_latch_flip(&row->latch_book);
}

void fh_state_give(fh_state_row *row, uint32_t worker)
{
    fh_store_release(&row->owner, worker); /* pairs with fh_state_owner() in the worker that takes the row */
}

void fh_state_hand_over(fh_state_row *row, uint32_t worker)
{
    fh_state_l1 l1 = row->l1[row->latch_l1 & 1];
    fh_state_book book = row->book[row->latch_book & 1];
    l1.position = book.position = 1;
    if (row->latch_l1 != 0)
        fh_state_put_l1(row, &l1);
    if (row->latch_book != 0) {
        fh_copy(&row->book[fh_latch_begin(&row->latch_book)], &book, sizeof book);
        fh_latch_flip(&row->latch_book);
    }
    fh_store_relaxed(&row->quote_position[0], UINT64_C(0));
    fh_store_relaxed(&row->quote_position[1], UINT64_C(0));
    fh_state_give(row, worker);
}

uint32_t fh_state_owner(const fh_state_row *row)
{
    return fh_load_acquire(&row->owner); /* pairs with fh_state_give() */
}

uint32_t fh_state_mark_stale(fh_table *table, uint32_t worker, uint64_t position)
{
    uint32_t marked = 0;
    for (uint32_t i = 0; i < table->row_max; i++) {
        fh_state_row *row = (fh_state_row *)(void *)table->rows + i;
        if (fh_state_owner(row) != worker)
            continue;
        fh_state_l1 l1 = row->l1[row->latch_l1 & 1];
        if (row->latch_l1 != 0 && l1.position >= position && !(l1.flags & FH_STALE)) {
            l1.flags |= FH_STALE;
            fh_state_put_l1(row, &l1);
            marked++;
        }
        fh_state_book book = row->book[row->latch_book & 1];
        if (row->latch_book != 0 && book.position >= position && !(book.flags & FH_STALE)) {
            book.flags |= FH_STALE;
            fh_copy(&row->book[fh_latch_begin(&row->latch_book)], &book, sizeof book);
            fh_latch_flip(&row->latch_book);
            marked++;
        }
    }
    return marked;
}
