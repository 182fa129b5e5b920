/* SPDX-License-Identifier: Apache-2.0
 * strategy.c <instance> <venue> <symbol> <trades>: an example strategy. Prints that many trades of one instrument, then its touch.
 * cc -O2 -I"$(python -c 'import feedhandler; print(feedhandler.get_include())')" strategy.c -o strategy */
#include "feedhandler_feed.h"
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

static fh_feed feed;
static fh_record record[4096];

/* What one record means to us: trades of our instrument are printed, anything that makes our view doubtful is said. */
static long use(const fh_record *one, const fh_instrument *instrument)
{
    if (one->kind == FH_STATUS && one->body.status.code == FH_WORKER_SILENT)
        printf("silent\n");
    if (one->kind == FH_STATUS && one->body.status.code == FH_LIVE && one->instrument == FH_INSTRUMENT_NONE)
        printf("live\n");
    if (one->kind != FH_TRADE || one->instrument != instrument->id)
        return 0;
    printf("trade %.*f %" PRId64 "\n", -instrument->price_exponent,
           (double)one->body.trade.price * pow(10, instrument->price_exponent), one->body.trade.size);
    return 1;
}

int main(int count, char **argument)
{
    char error[400];
    fh_feed_news news;
    fh_state_l1 touch;
    if (count != 5)
        return 2;
    if (fh_feed_open(&feed, argument[1], error, sizeof error) != FH_FEED_OK) {
        fprintf(stderr, "%s\n", error);
        return 1;
    }
    const fh_instrument *instrument = fh_feed_find(&feed, argument[2], argument[3]);
    if (instrument == NULL) {
        fprintf(stderr, "%s %s is not listed in %s\n", argument[2], argument[3], argument[1]);
        fh_feed_close(&feed);
        return 1;
    }
    setvbuf(stdout, NULL, _IOLBF, 0);
    printf("ready\n");
    for (long wanted = strtol(argument[4], NULL, 10); wanted > 0;) {
        int result = fh_feed_poll(&feed, record, sizeof record / sizeof *record, &news);
        for (size_t i = 0; result == FH_FEED_OK && i < news.count; i++)
            wanted -= use(&record[i], instrument);
        if (result == FH_FEED_LAPPED)
            printf("lost %" PRIu64 " of worker %u\n", news.lost, news.worker);
        if (result == FH_FEED_EMPTY)
            fh_feed_wait(&feed, 10000000);
    }
    if (fh_state_read_l1(fh_feed_state(&feed, instrument->id), &touch) == FH_FEED_OK)
        printf("touch %" PRId64 " %" PRId64 "\n", touch.bid_price, touch.ask_price);
    fh_feed_close(&feed);
    return 0;
}
