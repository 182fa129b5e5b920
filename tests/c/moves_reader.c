/* A strategy in C for the tests: follows every instrument across rings until standard input ends, prints one JSON line:
 * for each instrument the first and last trade id and how many there were, whether they were all in order and none missing,
 * and the last sequence of its book, which must never fall. */
#include "attach.h"
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>

#define RECORD_MAX 32768
#define INSTRUMENT_MAX 4096

typedef struct followed { uint64_t first, last, trades, missing, disordered, sequence, fallen, gaps, moved; } followed;

static fh_feed feed;
static fh_record records[RECORD_MAX];
static followed instruments[INSTRUMENT_MAX];

static void follow(const fh_record *record)
{
    if (record->instrument >= INSTRUMENT_MAX)
        return;
    followed *one = &instruments[record->instrument];
    if (record->kind == FH_TRADE) {
        uint64_t id = record->body.trade.trade_id;
        one->first = one->trades ? one->first : id;
        one->disordered += one->trades && id <= one->last;
        one->missing += one->trades && id > one->last + 1;
        one->last = id;
        one->trades++;
    } else if (record->kind == FH_LEVEL) {
        one->fallen += record->body.level.sequence < one->sequence;
        one->sequence = record->body.level.sequence;
    } else if (record->kind == FH_STATUS) {
        one->gaps += record->body.status.code == FH_GAP;
        one->moved += record->body.status.code == FH_MOVED_IN;
    }
}

static void print(uint64_t lost)
{
    const char *comma = "";
    printf("{\"lost\":%" PRIu64 ",\"instruments\":{", lost);
    for (uint32_t i = 0; i < INSTRUMENT_MAX; i++) {
        const followed *one = &instruments[i];
        if (one->trades == 0 && one->sequence == 0)
            continue;
        printf("%s\"%u\":{\"first\":%" PRIu64 ",\"last\":%" PRIu64 ",\"trades\":%" PRIu64 ",\"missing\":%" PRIu64
               ",\"disordered\":%" PRIu64 ",\"sequence\":%" PRIu64 ",\"fallen\":%" PRIu64 ",\"gaps\":%" PRIu64 ",\"moved\":%" PRIu64 "}",
               comma, i, one->first, one->last, one->trades, one->missing, one->disordered, one->sequence, one->fallen, one->gaps, one->moved);
        comma = ",";
    }
    puts("}}");
}

int main(int count, char **words)
{
    char error[400], byte;
    uint64_t lost = 0;
    struct pollfd input = {0, POLLIN, 0};
    int over = 0;
    if (count != 2 || attach(&feed, words[1], error, sizeof error) != FH_FEED_OK) {
        fprintf(stderr, "%s\n", count == 2 ? error : "usage: moves_reader INSTANCE");
        return 1;
    }
    puts("attached");
    fflush(stdout);
    for (;;) {
        fh_feed_news news;
        int result = fh_feed_poll(&feed, records, RECORD_MAX, &news);
        lost += news.lost;
        for (size_t i = 0; result == FH_FEED_OK && i < news.count; i++)
            follow(&records[i]);
        if (result == FH_FEED_EMPTY) {
            if (over)
                break;
            fh_feed_wait(&feed, 10000000);
            over = poll(&input, 1, 0) > 0 && read(0, &byte, 1) == 0;
        }
    }
    print(lost);
    fh_feed_close(&feed);
    return 0;
}
