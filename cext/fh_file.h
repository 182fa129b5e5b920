/* SPDX-License-Identifier: Apache-2.0
 * fh_file.h: create and map the files of an instance directory. Every file begins with a fh_file.
 *
 * Who writes:   the one process that creates or takes over the file. Who reads: anyone who may open it.
 * What blocks:  nothing. What is lost: nothing: space is taken at creation, so a full /dev/shm is an error
 *               here and never a SIGBUS later.
 * After a crash: a file without its magic was never finished; creating it again needs it removed first.
 */
#ifndef FH_FILE_H
#define FH_FILE_H
#include <stddef.h>
#include <stdint.h>
#include "fh_error.h"
#include "include/feedhandler.h"

/* Create name (it must not exist, nor be a symbolic link) with size bytes of zeros and map it. FH_OK, or
 * FH_ERROR_SYSTEM with errno (ENOSPC: too little room) and no file left behind. */
int fh_file_create(int dir_fd, const char *name, uint64_t size, int *fd, void **map);

/* Map an existing file whole, for writing or not, and check its head. FH_ERROR_SYSTEM with errno;
 * FH_ERROR_MALFORMED: not this kind of file, unfinished, cut short or of a size its head denies;
 * FH_ERROR_UNKNOWN: of another ABI version or layout. */
int fh_file_open(int dir_fd, const char *name, uint64_t magic, int writable, int *fd, void **map, uint64_t *size);

/* Fill the head and store the magic last. Pairs with the acquire load of the magic by whoever opens the file. */
void fh_file_seal(fh_file *file, uint64_t magic, uint32_t header_size, uint64_t total_size, uint64_t generation);

/* Unmap and close; keeps errno. */
void fh_file_close(int fd, void *map, uint64_t size);

#endif
