/* SPDX-License-Identifier: Apache-2.0 */
#include "fh_counters.h"
#include <errno.h>
#include <stdio.h>
#include <unistd.h>
#include "fh_file.h"
#include "include/feedhandler_reader.h"

static void fh_counters_file(char *name, size_t size, uint32_t worker)
{
    snprintf(name, size, "worker-%u.counters", worker);
}

/* Map the file; not one of this build: EPROTO. */
static fh_counters *fh_counters_map(int dir_fd, uint32_t worker, int writable)
{
    char name[40];
    int fd;
    void *map;
    uint64_t size;
    fh_counters_file(name, sizeof name, worker);
    int result = fh_file_open(dir_fd, name, FH_MAGIC_COUNTERS, writable, &fd, &map, &size);
    if (result != FH_OK) {
        errno = result == FH_ERROR_SYSTEM ? errno : EPROTO;
        return NULL;
    }
    close(fd);
    if (size != sizeof(fh_counters)) {
        fh_file_close(-1, map, size);
        errno = EPROTO;
        return NULL;
    }
    return (fh_counters *)map;
}

fh_counters *fh_counters_create(int dir_fd, uint32_t worker, uint64_t generation)
{
    char name[40];
    int fd;
    void *map;
    fh_counters_file(name, sizeof name, worker);
    int result = fh_file_create(dir_fd, name, sizeof(fh_counters), &fd, &map);
    if (result != FH_OK && errno != EEXIST)
        return NULL;
    fh_counters *counters = result == FH_OK ? (fh_counters *)map : fh_counters_map(dir_fd, worker, 1);
    if (counters == NULL)
        return NULL;
    counters->worker = worker;
    counters->pid_start = fh_pid_start();
    fh_store_relaxed(&counters->pid, (uint32_t)getpid());
    if (result == FH_OK) {
        close(fd);
        fh_file_seal(&counters->file, FH_MAGIC_COUNTERS, offsetof(fh_counters, worker), sizeof *counters, generation);
    }
    return counters;
}

fh_counters *fh_counters_open(int dir_fd, uint32_t worker)
{
    return fh_counters_map(dir_fd, worker, 0);
}

void fh_counters_close(fh_counters *counters)
{
    if (counters != NULL)
        fh_file_close(-1, counters, sizeof *counters);
}

const char *fh_counter_name(int index)
{
    static const char *const names[] = {
#define FH_COUNTER_TEXT(name) #name,
        FH_COUNTER_LIST(FH_COUNTER_TEXT)
#undef FH_COUNTER_TEXT
    };
    return index >= 0 && index < FH_COUNTER_COUNT ? names[index] : NULL;
}

/* Below 64 ns a bucket is 1 ns wide; from there each power of two has 64 buckets. */
static uint32_t fh_histogram_index(uint64_t ns)
{
    if (ns < 1u << FH_HISTOGRAM_SUB_BITS)
        return (uint32_t)ns;
    uint32_t shift = 63u - (uint32_t)__builtin_clzll(ns) - FH_HISTOGRAM_SUB_BITS;
    uint64_t index = ((uint64_t)shift << FH_HISTOGRAM_SUB_BITS) + (ns >> shift);
    return index < FH_HISTOGRAM_BUCKETS ? (uint32_t)index : FH_HISTOGRAM_BUCKETS - 1;
}

/* The largest number that falls into a bucket. */
static uint64_t fh_histogram_edge(uint32_t index)
{
    uint32_t sub = 1u << FH_HISTOGRAM_SUB_BITS;
    if (index < 2 * sub)
        return index;
    uint32_t shift = (index >> FH_HISTOGRAM_SUB_BITS) - 1;
    return ((uint64_t)((index & (sub - 1)) + sub + 1) << shift) - 1;
}

/* One writer: a relaxed load and store instead of an atomic addition. Pairs with the relaxed loads of any reader. */
static void fh_word_add(uint64_t *word, uint64_t value)
{
    fh_store_relaxed(word, fh_load_relaxed(word) + value);
}

void fh_histogram_add(fh_histogram *histogram, uint64_t ns)
{
    if (ns < histogram->min_ns || histogram->count == 0)
        fh_store_relaxed(&histogram->min_ns, ns);
    if (ns > histogram->max_ns)
        fh_store_relaxed(&histogram->max_ns, ns);
    fh_word_add(&histogram->bucket[fh_histogram_index(ns)], 1);
    fh_word_add(&histogram->sum_ns, ns);
    fh_word_add(&histogram->count, 1);
}

uint64_t fh_histogram_quantile(const fh_histogram *histogram, double q)
{
    uint64_t total = 0, below = 0;
    for (uint32_t i = 0; i < FH_HISTOGRAM_BUCKETS; i++)
        total += fh_load_relaxed(&histogram->bucket[i]);
    if (total == 0)
        return 0;
    /* The rank-th smallest value, 1 to total: for 100 values the median is the 50th. */
    double exact = q * (double)total;
    uint64_t rank = exact <= 1 ? 1 : exact >= (double)total ? total : (uint64_t)exact;
    rank += (double)rank < exact && rank < total;
    uint64_t max_ns = fh_load_relaxed(&histogram->max_ns);
    for (uint32_t i = 0; i < FH_HISTOGRAM_BUCKETS - 1; i++) {
        below += fh_load_relaxed(&histogram->bucket[i]);
        if (below >= rank)
            return fh_histogram_edge(i) < max_ns ? fh_histogram_edge(i) : max_ns;
    }
    return max_ns; /* the last bucket is open above */
}

/* Printable ASCII and whole UTF-8 bytes stay; control bytes would let a venue write on an operator's terminal. */
static size_t fh_error_text(char *to, size_t room, const char *text, size_t size)
{
    size_t count = size < room - 1 ? size : room - 1;
    while (count < size && count > 0 && ((unsigned char)text[count] & 0xc0) == 0x80)
        count--; /* do not cut inside a UTF-8 character */
    for (size_t i = 0; i < count; i++) {
        unsigned char byte = (unsigned char)text[i];
        /* 0xc2 0x80 to 0xc2 0x9f are the control characters above ASCII. */
        int control = byte < 0x20 || byte == 0x7f || (byte == 0xc2 && i + 1 < count && (unsigned char)text[i + 1] < 0xa0)
            || (byte < 0xa0 && byte >= 0x80 && i > 0 && (unsigned char)text[i - 1] == 0xc2);
        to[i] = control ? '?' : (char)byte;
    }
    memset(to + count, 0, room - count);
    return count;
}

static void fh_error_store(fh_error_row *row, uint64_t now_ns, uint32_t code, uint32_t session, const char *text)
{
    memcpy(row->text, text, sizeof row->text);
    row->code = code;
    fh_store_relaxed(&row->session, session);
    fh_store_relaxed(&row->first_ns, now_ns);
    fh_store_relaxed(&row->last_ns, now_ns);
    /* Release: who sees a count sees the text it counts. Pairs with the acquire load of count by whoever lists errors. */
    fh_store_release(&row->count, 1u);
}

void fh_error_add(fh_counters *counters, uint64_t now_ns, uint32_t code, uint32_t session, const char *text, size_t size)
{
    char clean[sizeof counters->error[0].text];
    fh_error_row *oldest = &counters->error[0];
    fh_error_text(clean, sizeof clean, text, size);
    for (int i = 0; i < FH_ERROR_ROW_MAX; i++) {
        fh_error_row *row = &counters->error[i];
        if (row->count != 0 && row->code == code && memcmp(row->text, clean, sizeof clean) == 0) {
            fh_store_relaxed(&row->session, session);
            fh_store_relaxed(&row->last_ns, now_ns);
            fh_word_add(&row->count, 1);
            return;
        }
        if (row->count == 0) {
            fh_error_store(row, now_ns, code, session, clean);
            return;
        }
        if (row->last_ns < oldest->last_ns)
            oldest = row;
    }
    /* Full: the one not seen for longest makes room. Zero first, so that nobody counts the new text as the old one. */
    fh_store_relaxed(&oldest->count, 0u);
    fh_fence_release();
    fh_error_store(oldest, now_ns, code, session, clean);
}
