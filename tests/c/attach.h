/* For the strategies in C of the tests: attach to an instance as soon as it is there. */
#ifndef FEEDHANDLER_TESTS_ATTACH_H
#define FEEDHANDLER_TESTS_ATTACH_H

#include "include/feedhandler_feed.h"

#define ATTEMPT_MAX 15000 /* 2 ms apart: 30 s */

static int attach(fh_feed *feed, const char *name, char *error, size_t error_size)
{
    const struct timespec pause = {0, 2000000};
    int result = FH_FEED_ABSENT;
    for (int i = 0; i < ATTEMPT_MAX && result != FH_FEED_OK; i++) {
        result = fh_feed_open(feed, name, error, error_size);
        if (result != FH_FEED_OK)
            nanosleep(&pause, NULL);
    }
    return result;
}

#endif
