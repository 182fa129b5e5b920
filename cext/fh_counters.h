/* SPDX-License-Identifier: Apache-2.0
 * fh_counters.h: worker-<n>.counters: counters, sessions, latency histograms and distinct errors of one worker.
 * Who writes: worker n, plain relaxed stores. Who reads: `stats`, `latency`, `errors`, `conns`, with or without a supervisor.
 * What is lost: nothing; a reader may see a histogram a few counts apart from its total. */
#ifndef FH_COUNTERS_H
#define FH_COUNTERS_H
#include <stddef.h>
#include <stdint.h>
#include "fh_error.h"
#include "include/feedhandler.h"

/* id and name of every counter, in file order; the name is what `stats --counters` prints. */
#define FH_COUNTER_LIST(X) \
    X(frames) X(frame_bytes) X(frames_control) X(frames_malformed) X(frames_unknown) X(frames_unlisted) \
    X(frames_oversize) X(frames_protocol_error) X(frames_utf8_error) X(events) X(events_ignored) X(records) X(batches) \
    X(book_messages) X(book_levels) X(book_stale) X(book_gaps) X(book_resyncs) X(book_snapshots) X(book_checksum_ok) \
    X(book_checksum_bad) X(book_levels_refused) X(book_deletes_absent) X(book_crossed) X(book_pending_dropped) \
    X(duplicates) X(inexact) X(overflow) X(exponent_raised) X(ts_suspect) X(sessions_opened) X(sessions_closed) \
    X(subscribe_sent) X(subscribe_acked) X(subscribe_rejected) X(first_data_missed) X(stale_streams) X(pings) X(pongs) \
    X(wakes) X(loop_ns_max) X(state_rows) X(resumes)

enum { /* index of each counter */
#define FH_COUNTER_ENUM(name) FH_COUNTER_##name,
    FH_COUNTER_LIST(FH_COUNTER_ENUM) FH_COUNTER_COUNT
#undef FH_COUNTER_ENUM
};

/* Log-linear histogram of ns: 64 sub-buckets a power of two (1.6 % wide), 0 ns to 2^41 ns (36 minutes), above: the last bucket. */
#define FH_HISTOGRAM_SUB_BITS 6
#define FH_HISTOGRAM_BUCKETS 2304 /* 64 * (41 - 6 + 1) */
typedef struct fh_histogram { uint64_t count, sum_ns, max_ns, min_ns; uint64_t bucket[FH_HISTOGRAM_BUCKETS]; } fh_histogram;

/* Stages: receive→decoded (DECODE), receive→in the ring (PUBLISH), venue event time→receive (VENUE, clamped at 0), loop turn (LOOP),
 * connection→first data (FIRST_DATA). */
enum fh_stage { FH_STAGE_DECODE, FH_STAGE_PUBLISH, FH_STAGE_VENUE, FH_STAGE_LOOP, FH_STAGE_FIRST_DATA, FH_STAGE_COUNT };

#define FH_SESSION_MAX 512
typedef struct fh_session_row { /* one WebSocket connection of the worker; index = header.session */
    uint32_t id, state;         /* connection id of the plan; state: 0 free, 1 connecting, 2 up, 3 down, 4 backing off */
    uint64_t opened_ns, frame_ns_last, frames, bytes, records, gaps, reconnects;
    uint32_t streams, streams_live;
    uint64_t close_code_last;
    char venue[24], endpoint[24], address[48];
    uint64_t first, second;     /* events of streams with two lines: this one brought them first, or after another */
    uint64_t behind_ns, behind_count; /* summed over those of second whose first arrival is known */
    /* How late trades, quotes and book messages were: ts_recv - ts_event, below 0 where the clocks say so. min: since the worker looked last. */
    int64_t lag_sum_ns;
    uint64_t lag_count;
    int64_t lag_min_ns;
} fh_session_row;

#define FH_ERROR_ROW_MAX 128
typedef struct fh_error_row { uint64_t first_ns, last_ns, count; uint32_t code, session; char text[224]; } fh_error_row; /* distinct errors */

typedef struct fh_counters {
    fh_file file;
    uint32_t worker, pid;
    uint64_t pid_start, heartbeat_ns;
    uint64_t counter[128];
    fh_histogram stage[FH_STAGE_COUNT];
    fh_session_row session[FH_SESSION_MAX];
    fh_error_row error[FH_ERROR_ROW_MAX];
} fh_counters;
_Static_assert(FH_COUNTER_COUNT <= 128, "room for every counter");
_Static_assert(sizeof(fh_session_row) == 232 && sizeof(fh_error_row) == 256, "rows without hidden padding");
_Static_assert(offsetof(fh_counters, counter) == 80, "counters follow the head");

/* Create the file, or take over the one a predecessor left: its numbers go on. NULL with errno (EPROTO: not a counters
 * file of this build). */
fh_counters *fh_counters_create(int dir_fd, uint32_t worker, uint64_t generation);
fh_counters *fh_counters_open(int dir_fd, uint32_t worker); /* read-only; NULL with errno as above */
void fh_counters_close(fh_counters *counters);
const char *fh_counter_name(int index);
void fh_histogram_add(fh_histogram *histogram, uint64_t ns);
uint64_t fh_histogram_quantile(const fh_histogram *histogram, double q); /* upper edge of the bucket; 0 when empty */
void fh_error_add(fh_counters *counters, uint64_t now_ns, uint32_t code, uint32_t session, const char *text, size_t size); /* folds repeats; control bytes become '?' */

#endif
