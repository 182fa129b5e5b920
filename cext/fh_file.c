/* SPDX-License-Identifier: Apache-2.0 */
#include "fh_file.h"
#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

int fh_file_create(int dir_fd, const char *name, uint64_t size, int *fd, void **map)
{
    *fd = openat(dir_fd, name, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0640);
    if (*fd < 0)
        return FH_ERROR_SYSTEM;
    int error = posix_fallocate(*fd, 0, (off_t)size);
    if (error == 0) {
        *map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, *fd, 0);
        if (*map != MAP_FAILED)
            return FH_OK;
        error = errno;
    }
    unlinkat(dir_fd, name, 0);
    close(*fd);
    *fd = -1;
    errno = error;
    return FH_ERROR_SYSTEM;
}

static int fh_file_check(const fh_file *file, uint64_t magic, uint64_t size)
{
    /* Acquire: a reader that sees the magic sees the head behind it. Pairs with the release in fh_file_seal(). */
    if (fh_load_acquire(&file->magic) != magic || size < file->header_size)
        return FH_ERROR_MALFORMED;
    if (file->abi_version != FH_ABI_VERSION || file->schema_hash != FH_SCHEMA_HASH)
        return FH_ERROR_UNKNOWN;
    return file->total_size == size ? FH_OK : FH_ERROR_MALFORMED;
}

int fh_file_open(int dir_fd, const char *name, uint64_t magic, int writable, int *fd, void **map, uint64_t *size)
{
    struct stat status;
    *fd = openat(dir_fd, name, (writable ? O_RDWR : O_RDONLY) | O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK);
    if (*fd < 0)
        return FH_ERROR_SYSTEM;
    int result = fstat(*fd, &status) == 0 ? FH_OK : FH_ERROR_SYSTEM;
    if (result == FH_OK && (!S_ISREG(status.st_mode) || status.st_size < (off_t)sizeof(fh_file)))
        result = FH_ERROR_MALFORMED;
    if (result == FH_OK) {
        *size = (uint64_t)status.st_size;
        *map = mmap(NULL, *size, PROT_READ | (writable ? PROT_WRITE : 0), MAP_SHARED, *fd, 0);
        result = *map == MAP_FAILED ? FH_ERROR_SYSTEM : fh_file_check((const fh_file *)*map, magic, *size);
        if (result == FH_OK)
            return FH_OK;
        if (*map != MAP_FAILED)
            munmap(*map, *size);
    }
    int error = errno;
    close(*fd);
    *fd = -1;
    errno = error;
    return result;
}

void fh_file_seal(fh_file *file, uint64_t magic, uint32_t header_size, uint64_t total_size, uint64_t generation)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    file->abi_version = FH_ABI_VERSION;
    file->header_size = header_size;
    file->schema_hash = FH_SCHEMA_HASH;
    file->total_size = total_size;
    file->generation = generation;
    file->created_ns = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    /* Release: everything stored before is visible to whoever sees the magic. Pairs with fh_file_check() and
     * the acquire load in feedhandler.h. */
    fh_store_release(&file->magic, magic);
}

void fh_file_close(int fd, void *map, uint64_t size)
{
    int error = errno;
    if (map != NULL)
        munmap(map, size);
    if (fd >= 0)
        close(fd);
    errno = error;
}
