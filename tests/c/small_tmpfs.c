/* SPDX-License-Identifier: Apache-2.0
 * small_tmpfs.c <directory>: on a file system of 256 KiB a ring of 64 KiB fits and one of 1 MiB answers ENOSPC and leaves no
 * file. Runs in its own mount namespace; exit 77: not permitted. */
#include "fh_counters.h"
#include "fh_ring.h"
#include "fh_state.h"
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <sys/mount.h>
#include <unistd.h>

static int check(int true_, const char *what)
{
    if (!true_)
        fprintf(stderr, "not so: %s\n", what);
    return !true_;
}

int main(int count, char **argument)
{
    if (count != 2 || unshare(getuid() == 0 ? CLONE_NEWNS : CLONE_NEWUSER | CLONE_NEWNS) != 0
        || mount(NULL, "/", NULL, MS_REC | MS_PRIVATE, NULL) != 0
        || mount("tmpfs", argument[1], "tmpfs", 0, "size=256k") != 0) {
        perror("unshare or mount");
        return 77;
    }
    fh_writer writer;
    fh_table table;
    int dir_fd = open(argument[1], O_RDONLY | O_DIRECTORY), failed = 0;
    failed |= check(fh_ring_create(&writer, dir_fd, 0, 16384, 1) == FH_ERROR_SYSTEM && errno == ENOSPC, "1 MiB does not fit");
    failed |= check(faccessat(dir_fd, "worker-0.ring", F_OK, 0) != 0, "no file is left behind");
    failed |= check(fh_table_create(&table, dir_fd, "state", FH_MAGIC_STATE, sizeof(fh_state_row), 1000, 1) == FH_ERROR_SYSTEM
                    && errno == ENOSPC, "nor do 1,000 rows");
    failed |= check(fh_ring_create(&writer, dir_fd, 0, 1024, 1) == FH_OK, "64 KiB fit");
    failed |= check(fh_counters_create(dir_fd, 0, 1) == NULL && errno == ENOSPC, "counters beside it do not");
    failed |= check(faccessat(dir_fd, "worker-0.counters", F_OK, 0) != 0, "and leave no file either");
    return failed;
}
