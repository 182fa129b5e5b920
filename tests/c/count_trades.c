/* A strategy in C for the tests: attach as soon as the instance is there, say so, sum what is read until standard input ends,
 * print one JSON line: [count, sum] of the records but STATUS, and of the trades. A record's sum is that of its eight words, each times a weight: tests/path_reader.py
 * has the same. */
#include "attach.h"
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>

#define RECORD_MAX 32768

static fh_feed feed;
static fh_record records[RECORD_MAX];

static uint64_t sum(const fh_record *record)
{
    static const uint64_t weight[8] = {3, 5, 7, 11, 13, 17, 19, 23};
    uint64_t word[8], total = 0;
    memcpy(word, record, sizeof word);
    for (int i = 0; i < 8; i++)
        total += word[i] * (weight[i] * 0x9E3779B97F4A7C15u);
    return total;
}

int main(int count, char **words)
{
    char error[400], byte;
    uint64_t data = 0, data_sum = 0, trades = 0, trades_sum = 0, lost = 0;
    struct pollfd input = {0, POLLIN, 0};
    int over = 0;
    if (count != 2 || attach(&feed, words[1], error, sizeof error) != FH_FEED_OK) {
        fprintf(stderr, "%s\n", count == 2 ? error : "usage: count_trades INSTANCE");
        return 1;
    }
    puts("attached");
    fflush(stdout);
    for (;;) {
        fh_feed_news news;
        int result = fh_feed_poll(&feed, records, RECORD_MAX, &news);
        lost += news.lost;
        for (size_t i = 0; result == FH_FEED_OK && i < news.count; i++) {
            if (records[i].kind == FH_STATUS)
                continue;
            data++;
            data_sum += sum(&records[i]);
            if (records[i].kind == FH_TRADE) {
                trades++;
                trades_sum += sum(&records[i]);
            }
        }
        if (result == FH_FEED_EMPTY) {
            if (over)
                break;
            fh_feed_wait(&feed, 10000000);
            over = poll(&input, 1, 0) > 0 && read(0, &byte, 1) == 0;
        }
    }
    printf("{\"data\":[%" PRIu64 ",%" PRIu64 "],\"trades\":[%" PRIu64 ",%" PRIu64 "],\"lost\":%" PRIu64 "}\n",
           data, data_sum, trades, trades_sum, lost);
    fh_feed_close(&feed);
    return 0;
}
