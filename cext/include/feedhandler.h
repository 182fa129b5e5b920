/* SPDX-License-Identifier: Apache-2.0
 *
 * feedhandler.h: the shared memory of one feedhandler instance. feedhandler_reader.h reads it.
 *
 * Who writes:   each file has one writer (worker n: worker-<n>.ring and its rows of `state`; the
 *               supervisor: `instruments`); each reader writes only its own slot of `readers`.
 * Who reads:    any process, read-only, without being noticed by a writer.
 * What blocks:  nothing. No lock exists; a reader that waits sleeps on a futex of its own choice.
 * What is lost: a reader slower than a whole ring is lapped and is told exactly how many records.
 * After a crash: a killed writer leaves no torn record; its successor resumes the same ring at the
 *               first uncommitted position with a STATUS EPOCH record.
 *
 * C11 and C++17. All integers are little-endian.
 */
#ifndef FEEDHANDLER_H
#define FEEDHANDLER_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#ifdef __cplusplus
#define FH_STATIC_ASSERT(test, text) static_assert(test, text)
extern "C" {
#else
#define FH_STATIC_ASSERT(test, text) _Static_assert(test, text)
#endif

#define FH_ABI_VERSION 1u            /* raised whenever a byte below moves */
#define FH_SCHEMA_HASH 0x6f9f2ed2fd17512bull /* FNV-1a of the layout text below; a test says the new value */
#define FH_CACHE_LINE 64u
#define FH_SLOT_SIZE 64u
#define FH_CLAIM_BLOCK 64u           /* positions the writer claims at a time */
#define FH_WAKE_GAP_NS 50000         /* a writer wakes at most once in this time */
#define FH_UNDEFINED INT64_MIN       /* a number the venue did not send, or that does not fit */
#define FH_INSTRUMENT_NONE UINT32_MAX /* a record of the whole ring, not of one instrument */
#define FH_BOOK_TOP 20               /* levels a side kept in `state` */
#define FH_RING_MAX 256              /* workers of one instance */
#define FH_READER_MAX 64             /* slots in `readers` */

/* What a record says. A kind above 31 never carries a price. */
enum fh_kind {
    FH_CONTINUATION = 0, /* further 32 bytes of the record before it */
    FH_TRADE = 1, FH_QUOTE = 2, FH_TOUCH = 3, FH_LEVEL = 4, FH_MARK = 5, FH_INDEX = 6, FH_FUNDING = 7,
    FH_OPEN_INTEREST = 8, FH_LIQUIDATION = 9, FH_CANDLE = 10, FH_TICKER = 11, FH_GREEKS = 12, FH_STATUS = 32
};

/* Flags of a record. */
enum fh_flag {
    FH_LAST = 1,        /* ends one venue event: everything before it belongs together */
    FH_SNAPSHOT = 2,    /* part of a full book */
    FH_RESET = 4,       /* clear the book first */
    FH_GAP_BEFORE = 8,  /* records of this instrument are missing before this one */
    FH_STALE = 16,      /* true when sent, but the stream behind it is not known to be alive */
    FH_INEXACT = 32,    /* a number was rounded to the instrument's exponent */
    FH_OVERFLOW = 64,   /* a number did not fit and is FH_UNDEFINED */
    FH_TS_SUSPECT = 128 /* the venue's time was absent or implausible */
};

/* Statistics (quote_volume, average, the greeks) are doubles, NaN where the venue told none: a turnover needs the digits of price and
 * size together. Prices and sizes are mantissas. Top bit of a candle's interval_s: the interval is over and these are its last
 * values; clear where it goes on, and at venues that do not say. */
#define FH_CANDLE_CLOSED 0x80000000u
enum fh_side { FH_SIDE_NONE = 0, FH_BID = 1, FH_ASK = 2 }; /* of a taker: FH_BID bought, FH_ASK sold */

/* Codes of a STATUS record (fh_status_body.code). */
enum fh_status {
    FH_GAP = 1,          /* a, b: sequence expected, sequence received; the book is not valid from here on */
    FH_RESYNC = 2,       /* a new snapshot was asked for */
    FH_STALE_STREAM = 3, /* nothing heard within the stream's deadline, or what comes is late; a: ns since the last message, b: ns late, or 0 */
    FH_LIVE = 4,         /* the stream is in sync and delivering again */
    FH_HALT = 5,         /* the venue says that trading stands still */
    FH_HEARTBEAT = 6,    /* the writer lives; a: CLOCK_MONOTONIC ns */
    FH_EPOCH = 7,        /* a new writer resumed this ring: records without their LAST before here are void; a: epoch */
    FH_SESSION_UP = 8, FH_SESSION_DOWN = 9, /* header.session names it; a: close code of a DOWN */
    FH_MOVED_OUT = 10,   /* a: last venue sequence (detail 1: of the book), b: worker it goes to, c: of the last quote */
    FH_MOVED_IN = 11,    /* a: last venue sequence before, b: worker it came from: drain that ring first, up to position c */
    FH_INSTRUMENT_CHANGED = 12, /* a, b: new price and size exponent, c: old ones, a byte each; a snapshot follows for a live book */
    FH_CLOCK = 13,       /* a: CLOCK_MONOTONIC ns, b: CLOCK_REALTIME ns of one instant */
    FH_REJECTED = 14,    /* the venue refused the stream; detail: channel */
    FH_WORKER_SILENT = 15 /* never in a ring: a reader says it of a ring whose heartbeat stopped */
};

/* One record, one cache line. */
typedef struct fh_record {
    uint64_t commit;      /* position + 1; stored last, with release */
    uint64_t ts_recv_ns;  /* UTC ns at the socket read of the frame */
    uint64_t ts_event_ns; /* UTC ns of the venue's matching time, else its send time; 0: none */
    uint32_t instrument;
    uint8_t kind;
    uint8_t flags;
    uint16_t session;     /* of this worker */
    union {
        int64_t word[4];
        struct { int64_t price, size; uint64_t trade_id; uint8_t aggressor, aggregate; uint16_t pad0; uint32_t count; } trade;
        struct { int64_t bid_price, bid_size, ask_price, ask_size; } quote; /* QUOTE and TOUCH */
        struct { int64_t price, size; uint64_t sequence; uint8_t side, pad0[3]; uint32_t order_count; } level;
        struct { int64_t price; uint64_t pad0[3]; } mark;                   /* MARK and INDEX */
        struct { int64_t rate_e12, predicted_e12; uint64_t next_ns; uint32_t interval_s, pad0; } funding;
        struct { int64_t size, value; uint64_t pad0[2]; } open_interest;    /* value: quote currency, price exponent */
        struct { int64_t price, size; uint64_t order_id; uint8_t side, pad0[7]; } liquidation; /* side: of the order */
        struct { int64_t open, high, low, close; } candle;   /* then, in the next slot: */
        struct { int64_t volume; double quote_volume; uint64_t start_ns; uint32_t count, interval_s; } candle_more; /* interval_s: FH_CANDLE_CLOSED */
        struct { int64_t last, open, high, low; } ticker;    /* then: */
        struct { int64_t volume; double quote_volume, average; int64_t count; } ticker_more; /* average: weighted by volume */
        struct { double delta, gamma, vega, theta; } greeks; /* then: rho, bid_iv, ask_iv, mark_iv; underlying, rate, 0, 0 */
        struct { uint32_t code, detail; uint64_t a, b, c; } status;
    } body;
} fh_record;

FH_STATIC_ASSERT(sizeof(fh_record) == FH_SLOT_SIZE, "one record, one cache line");
FH_STATIC_ASSERT(offsetof(fh_record, instrument) == 24, "offset of instrument");
FH_STATIC_ASSERT(offsetof(fh_record, kind) == 28, "offset of kind");
FH_STATIC_ASSERT(offsetof(fh_record, body) == 32, "offset of body");

/* First page of every file: what it is, and who made it. magic is stored last, with release. */
typedef struct fh_file {
    uint64_t magic;       /* FH_MAGIC_* */
    uint32_t abi_version, header_size; /* data starts at header_size: 4096; in counters after this head */
    uint64_t schema_hash; /* FH_SCHEMA_HASH of the writer's build */
    uint64_t total_size;  /* bytes of the file, header included */
    uint64_t generation;  /* of the manifest that announced it */
    uint64_t created_ns;
    uint32_t row_size, row_max; /* instruments, state, readers: geometry of the rows */
} fh_file;

#define FH_MAGIC_RING 0x0031474e49524846ull        /* "FHRING1" */
#define FH_MAGIC_STATE 0x0031415453484600ull
#define FH_MAGIC_INSTRUMENTS 0x0031534e49484600ull
#define FH_MAGIC_READERS 0x0031444552484600ull
#define FH_MAGIC_COUNTERS 0x0031544e43484600ull

/* Head of worker-<n>.ring, 4096 bytes; words with different rhythms lie 128 bytes apart. */
typedef struct fh_ring {
    fh_file file;
    uint64_t slot_count;  /* power of two */
    uint32_t worker, pad0;
    uint64_t pad1[7];
    uint64_t epoch;       /* +1 each time a writer takes the ring */
    uint32_t pid, state;  /* of the writer; state: enum fh_ring_state */
    uint64_t pid_start;   /* /proc/<pid>/stat field 22, so that a reused pid is told apart */
    uint64_t changed;     /* position after the last EPOCH, INSTRUMENT_CHANGED or MOVED_IN: a span from here on holds none */
    uint64_t pad2[12];
    uint64_t claim;       /* slots below this position may be being written */
    uint64_t pad3[15];
    uint64_t head;        /* every event below this position is complete, and `state` reflects it */
    uint64_t pad4[15];
    uint32_t wake_seq;    /* futex word */
    uint32_t wake_fenced; /* 1: the writer is registered for membarrier, so that a waiter's fence reaches it */
    uint64_t wake_last_ns; /* CLOCK_MONOTONIC of the last wake */
    uint64_t pad6[14];
    uint64_t heartbeat_ns; /* CLOCK_MONOTONIC, stored at least every 10 ms while the worker's loop turns */
    uint64_t pad7[431];
} fh_ring;

enum fh_ring_state { FH_RING_INIT = 0, FH_RING_LIVE = 1, FH_RING_CLOSED = 2 };

FH_STATIC_ASSERT(sizeof(fh_file) == 56, "file head");
FH_STATIC_ASSERT(offsetof(fh_ring, claim) % 128 == 0, "the claim line is its own");
FH_STATIC_ASSERT(offsetof(fh_ring, head) % 128 == 0, "the head line is its own");
FH_STATIC_ASSERT(offsetof(fh_ring, wake_seq) % 128 == 0, "the futex line is its own");
FH_STATIC_ASSERT(offsetof(fh_ring, heartbeat_ns) % 128 == 0, "the heartbeat line is its own");
FH_STATIC_ASSERT(sizeof(fh_ring) == 4096, "one page of ring head");

/* One row of `instruments`. Text is UTF-8, NUL-padded. A value is mantissa * 10^exponent. */
typedef struct fh_instrument {
    uint32_t id;          /* index of the row */
    uint8_t kind;         /* enum fh_instrument_kind */
    uint8_t state;        /* enum fh_instrument_state */
    int8_t price_exponent, size_exponent;
    uint16_t owner;       /* worker */
    uint16_t venue;       /* index of the venue in the instance */
    int8_t multiplier_exponent; uint8_t inverse; /* inverse: sizes are in quote currency */
    uint16_t pad0;
    int64_t tick, lot;    /* smallest price and size step, in mantissas of the two exponents */
    int64_t multiplier;   /* coins or contracts per unit of size */
    uint64_t expiry_ns;   /* 0: none */
    int64_t strike;       /* price mantissa; FH_UNDEFINED: none */
    char venue_name[24], symbol[48], canonical[64];
    uint64_t pad1[8];
} fh_instrument;

enum fh_instrument_kind { FH_SPOT = 1, FH_PERPETUAL = 2, FH_FUTURE = 3, FH_OPTION = 4 };
enum fh_instrument_state { FH_LISTED = 1, FH_SUBSCRIBED = 2, FH_DELISTED = 3 };

FH_STATIC_ASSERT(sizeof(fh_instrument) == 256, "one instrument, four cache lines");

/* Last values of one instrument, as of ring position `position` of worker `owner`. */
typedef struct fh_state_l1 {
    uint64_t position, ts_recv_ns, ts_event_ns, sequence;
    int64_t bid_price, bid_size, ask_price, ask_size;  /* touch of the book we keep, else the venue's quote */
    int64_t quote_bid_price, quote_bid_size, quote_ask_price, quote_ask_size; /* the venue's own quote */
    int64_t trade_price, trade_size;
    uint64_t trade_id;
    int64_t mark_price, index_price, funding_e12;
    uint64_t funding_next_ns;
    int64_t open_interest;
    uint32_t status;      /* enum fh_status of the book: FH_LIVE, FH_GAP, … ; 0: no book */
    uint8_t trade_aggressor, flags; /* flags: enum fh_flag */
    int8_t price_exponent, size_exponent; /* of every mantissa in this row */
    uint64_t pad0[3];
} fh_state_l1;

typedef struct fh_state_book {
    uint64_t position, sequence, ts_event_ns;
    uint16_t bid_count, ask_count;
    uint8_t flags; int8_t price_exponent, size_exponent; uint8_t pad0;
    uint64_t pad1[4];
    struct { int64_t price, size; } bid[FH_BOOK_TOP], ask[FH_BOOK_TOP]; /* best first */
} fh_state_book;

/* Two copies and a latch: copy (latch & 1) is intact while the writer fills the other one. */
typedef struct fh_state_row {
    uint32_t owner, pad0; /* worker that may write this row; changing it is the hand-over */
    uint64_t latch_l1, latch_book;
    uint64_t quote_sequence[2], quote_position[2]; /* owner to whoever follows it when it died: the last two quotes, position behind each */
    uint64_t pad1;
    fh_state_l1 l1[2];
    fh_state_book book[2];
} fh_state_row;

FH_STATIC_ASSERT(sizeof(fh_state_l1) == 192, "three cache lines");
FH_STATIC_ASSERT(sizeof(fh_state_book) == 704, "eleven cache lines");
FH_STATIC_ASSERT(sizeof(fh_state_row) == 64 + 2 * 192 + 2 * 704, "29 cache lines");

/* One slot of `readers`, written by its reader alone and believed by nobody. */
typedef struct fh_reader_slot {
    uint32_t pid, waiting_mask_hint;
    uint64_t pid_start, polled_ns;
    char name[40];
    struct { uint64_t cursor, lost; } ring[FH_RING_MAX];
} fh_reader_slot;

/* Head of `readers`, 4096 bytes. waiting[n] is the one word a reader shares with worker n: non-zero
 * asks for a wake. Forged, it costs that worker one system call in 50 µs and nothing else. */
typedef struct fh_readers {
    fh_file file;
    uint64_t pad0;
    uint32_t waiting[FH_RING_MAX];
    uint64_t pad1[376];
} fh_readers;

FH_STATIC_ASSERT(sizeof(fh_readers) == 4096, "one page of readers head");
FH_STATIC_ASSERT(sizeof(fh_reader_slot) == 64 + 16 * FH_RING_MAX, "a reader's slot");

/* Atomic words. Copies are vectors, but words under TSan. GCC and Clang move no access over a fence, atomic or not. */
#define fh_load_relaxed(word) __atomic_load_n((word), __ATOMIC_RELAXED)
#define fh_load_acquire(word) __atomic_load_n((word), __ATOMIC_ACQUIRE)
#define fh_store_relaxed(word, value) __atomic_store_n((word), (value), __ATOMIC_RELAXED)
#define fh_store_release(word, value) __atomic_store_n((word), (value), __ATOMIC_RELEASE)
#define fh_fence_acquire() __atomic_thread_fence(__ATOMIC_ACQUIRE)
#define fh_fence_release() __atomic_thread_fence(__ATOMIC_RELEASE)
#if defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define FH_WORD_COPY 1
#endif
#elif defined(__SANITIZE_THREAD__)
#define FH_WORD_COPY 1
#endif
typedef uint64_t __attribute__((may_alias)) fh_word;

/* Copy size bytes, a multiple of 8, that another process may be writing (or, on a writer's side, reading). */
static inline void fh_copy(void *to, const void *from, size_t size)
{
#ifdef FH_WORD_COPY
    for (size_t i = 0; i < size / 8; i++)
        fh_store_relaxed((fh_word *)to + i, fh_load_relaxed((const fh_word *)from + i));
#else
    memcpy(to, from, size);
#endif
}

#ifdef __cplusplus
}
#endif
#endif
