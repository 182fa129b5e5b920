/* A strategy in C for the tests: attach, say so, count trades until standard input ends, print one JSON line. */
#include "include/feedhandler_feed.h"
#include <poll.h>
#include <stdio.h>

#define RECORD_MAX 32768

int main(int count, char **words)
{
    static fh_feed feed;
    static fh_record records[RECORD_MAX];
    char error[400], byte;
    unsigned long long trades = 0, seen = 0, lost = 0, ids = 0;
    struct pollfd input = {0, POLLIN, 0};
    int over = 0, result;
    if (count != 2 || fh_feed_open(&feed, words[1], error, sizeof error) != FH_FEED_OK) {
        fprintf(stderr, "%s\n", count == 2 ? error : "usage: count_trades INSTANCE");
        return 1;
    }
    puts("attached");
    fflush(stdout);
    for (;;) {
        fh_feed_news news;
        result = fh_feed_poll(&feed, records, RECORD_MAX, &news);
        lost += news.lost;
        if (result == FH_FEED_OK) {
            for (size_t i = 0; i < news.count; i++)
                if (records[i].kind == FH_TRADE) {
                    trades++;
                    ids += records[i].body.trade.trade_id;
                }
            seen += news.count;
        } else if (result == FH_FEED_EMPTY) {
            if (over)
                break;
            fh_feed_wait(&feed, 10000000);
            over = poll(&input, 1, 0) > 0 && read(0, &byte, 1) == 0;
        }
    }
    printf("{\"records\":%llu,\"trades\":%llu,\"ids\":%llu,\"lost\":%llu}\n", seen, trades, ids, lost);
    fh_feed_close(&feed);
    return 0;
}
