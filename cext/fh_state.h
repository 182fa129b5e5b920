/* SPDX-License-Identifier: Apache-2.0
 * fh_state.h: the writers' side of `state` and `instruments` (layout: include/feedhandler.h).
 * Who writes: a row belongs to the worker named in row->owner. Who reads: anyone, through the latch.
 * After a crash: one of the two copies is always intact; rows newer than the resumed ring position are marked FH_STALE. */
#ifndef FH_STATE_H
#define FH_STATE_H
#include <stdint.h>
#include "fh_book.h"
#include "fh_error.h"
#include "include/feedhandler.h"

typedef struct fh_table { fh_file *file; char *rows; uint32_t row_max; uint64_t size; int fd; } fh_table;

/* Create `state`, `instruments` or `readers` with row_max rows, or map one read-write. Errors as fh_file_create() and
 * fh_file_open(); FH_ERROR_RANGE: no rows, more than 2^20, or a row size that is not a multiple of a cache line. */
int fh_table_create(fh_table *table, int dir_fd, const char *name, uint64_t magic, uint32_t row_size, uint32_t row_max, uint64_t generation);
/* Map `readers` whatever its head says: readers may write it, and none of them may keep a worker from starting. */
int fh_readers_open(fh_table *table, int dir_fd);
int fh_table_open(fh_table *table, int dir_fd, const char *name, uint64_t magic, uint32_t row_size);
void fh_table_close(fh_table *table);

/* Publish a new value of the row: write the copy that is not current, then flip the latch. Only its owner may. The book's
 * levels come from book, everything else from head. */
void fh_state_put_l1(fh_state_row *row, const fh_state_l1 *value);
void fh_state_put_book(fh_state_row *row, const fh_book *book, const fh_state_book *head);

/* The hand-over: after this the row belongs to worker and only worker may write it. */
void fh_state_give(fh_state_row *row, uint32_t worker);
/* The same of a row with values: until the new owner writes it, its position is 1, so that everything of the instrument in the new
 * owner's ring counts as later; and the words of the last quotes, which speak of the old owner's ring, are cleared. */
void fh_state_hand_over(fh_state_row *row, uint32_t worker);
/* Who may write the row; a new owner sees all that the old one stored. */
uint32_t fh_state_owner(const fh_state_row *row);

/* Set FH_STALE in the rows of worker whose position is position or later (0: all its rows). For a worker that resumed a
 * ring, before it publishes anything. Answers how many values were marked. */
uint32_t fh_state_mark_stale(fh_table *table, uint32_t worker, uint64_t position);

#endif
