/* SPDX-License-Identifier: Apache-2.0
 * pingpong.c <directory> <turns>: two processes hand a number to and fro through a ring each, asleep whenever it is not their
 * turn. Prints how many waits ended by their time-out of 50 ms. `readers`, `state` and `instruments` must be there. */
#include "feedhandler_feed.h"
#include "fh_ring.h"
#include "fh_state.h"
#include <stdlib.h>
#include <sys/wait.h>

static fh_feed feed;
static fh_writer writer;

static int fail(const char *what)
{
    fprintf(stderr, "%s\n", what);
    return -1;
}

/* Wait for the record with this number from the other's ring. Answers how many waits were as long as the time-out. */
static int await(int64_t number)
{
    fh_record record[8];
    fh_feed_news news;
    for (int timeouts = 0;;) {
        if (fh_feed_poll(&feed, record, 8, &news) == FH_FEED_OK) {
            for (size_t i = 0; i < news.count; i++)
                if (record[i].kind == FH_TRADE && record[i].body.word[0] == number && record[i].body.word[1] == 1 - writer.ring->worker)
                    return timeouts;
            continue;
        }
        uint64_t before = fh_clock_mono_ns();
        fh_feed_wait(&feed, 1000000000u);
        timeouts += fh_clock_mono_ns() - before >= 49000000u;
    }
}

static void say(int64_t number)
{
    fh_record record = {.kind = FH_TRADE, .flags = FH_LAST, .body.word = {number, writer.ring->worker}};
    fh_ring_put(&writer, &record);
    fh_ring_flush(&writer);
    fh_ring_heartbeat(&writer, fh_clock_mono_ns());
    fh_ring_wake(&writer, 0);
}

static int play(const char *directory, uint32_t worker, int ready_read, int ready_write, long turns)
{
    char error[400], byte = '+';
    fh_table readers;
    int timeouts = 0, dir_fd = open(directory, O_RDONLY | O_DIRECTORY);
    if (fh_ring_create(&writer, dir_fd, worker, 1024, 1) != FH_OK
        || fh_table_open(&readers, dir_fd, "readers", FH_MAGIC_READERS, sizeof(fh_reader_slot)) != FH_OK)
        return fail("no ring or no readers");
    writer.waiting = &((fh_readers *)(void *)readers.file)->waiting[worker];
    if (write(ready_write, &byte, 1) != 1 || read(ready_read, &byte, 1) != 1)
        return fail("the other one is gone");
    if (fh_feed_open(&feed, directory, error, sizeof error) != FH_FEED_OK)
        return fail(error);
    if (write(ready_write, &byte, 1) != 1 || read(ready_read, &byte, 1) != 1)
        return fail("the other one is gone");
    for (int64_t turn = 0; turn < turns; turn++) {
        if (worker == 0)
            say(turn);
        timeouts += await(turn);
        if (worker == 1)
            say(turn);
    }
    return timeouts;
}

int main(int count, char **argument)
{
    int to_child[2], to_parent[2], status;
    if (count != 3 || pipe(to_child) != 0 || pipe(to_parent) != 0)
        return 2;
    long turns = strtol(argument[2], NULL, 10);
    pid_t child = fork();
    if (child == 0) {
        close(to_child[1]);
        close(to_parent[0]);
        int timeouts = play(argument[1], 1, to_child[0], to_parent[1], turns);
        return timeouts < 0 || timeouts > 100 ? 101 : timeouts;
    }
    close(to_child[0]);
    close(to_parent[1]);
    int timeouts = play(argument[1], 0, to_parent[0], to_child[1], turns);
    waitpid(child, &status, 0);
    if (timeouts < 0 || !WIFEXITED(status) || WEXITSTATUS(status) > 100)
        return 1;
    printf("%d\n", timeouts + WEXITSTATUS(status));
    return 0;
}
