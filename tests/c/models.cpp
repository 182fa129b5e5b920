/* SPDX-License-Identifier: Apache-2.0
 * models.cpp <model> <mutant> <executions>: the ring's protocols under a weak-memory model checker (Relacy).
 *
 * Each step carries, after "=", the line of our code that it stands for; a test looks every one of them up, so that code and model
 * cannot part unseen. Mutant 0 is the protocol; every other number breaks one step and must be found. Sizes are tiny, so that
 * every lap and every death matters. Exit 0: no execution broke an assertion. */
#include <stdexcept>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <relacy/relacy.hpp>

static int mutant;
static const rl::memory_order relaxed = rl::mo_relaxed, acquire = rl::mo_acquire, release = rl::mo_release;
typedef rl::atomic<unsigned> word;

enum { SLOTS = 2, WRITES = 4, FLAG_LAST = 1, FLAG_EPOCH = 2 };

/* The shared words of a ring whose claim block is one slot. A record is two words of payload and its flags. */
struct Ring {
    word commit[SLOTS], first[SLOTS], second[SLOTS], flags[SLOTS], claim, head, changed;
    unsigned position, claimed; /* of the writer alone */

    void clear()
    {
        for (int i = 0; i < SLOTS; i++) {
            commit[i]($) = 0;
            first[i]($) = 0;
            second[i]($) = 0;
            flags[i]($) = 0;
        }
        claim($) = 0;
        head($) = 0;
        changed($) = 0;
        position = claimed = 0;
    }

    void put_claim()
    {
        claimed += 1;
        claim($).store(claimed, relaxed);             // = fh_ring.h: fh_store_relaxed(&writer->ring->claim, writer->claimed);
        if (mutant != 1)
            rl::atomic_thread_fence(release, $);      // = fh_ring.h: fh_fence_release();
    }

    void put_payload(unsigned value, unsigned flag)
    {
        unsigned i = position % SLOTS;
        if (position == claimed)                      // = fh_ring.h: if (writer->position == writer->claimed)
            put_claim();
        first[i]($).store(value, relaxed);            // = fh_ring.h: fh_store_relaxed((fh_word *)slot + i,
        flags[i]($).store(flag, relaxed);
        second[i]($).store(value, relaxed);
    }

    void put_commit()
    {
        unsigned i = position % SLOTS;
        position++;
        // = fh_ring.h: fh_store_release(&slot->commit, writer->position);
        commit[i]($).store(position, mutant == 2 ? relaxed : release);
    }

    void put(unsigned value, unsigned flag)
    {
        put_payload(value, flag);
        put_commit();
    }

    void flush()
    {
        // = fh_ring.h: fh_store_release(&writer->ring->head, writer->position);
        head($).store(position, mutant == 5 ? relaxed : release);
    }

    bool there(unsigned at) // = feedhandler_reader.h: *there = fh_load_acquire(&slot->commit) == position + 1;
    {
        return commit[at % SLOTS]($).load(mutant == 3 ? relaxed : acquire) == at + 1;
    }

    bool valid(unsigned at)
    {
        if (mutant != 4)
            rl::atomic_thread_fence(acquire, $);      // = feedhandler_reader.h: fh_fence_acquire();
        // = feedhandler_reader.h: return fh_load_relaxed(&reader->ring->claim) <= reader->position + reader->slot_count;
        return claim($).load(relaxed) <= at + SLOTS;
    }
};

/* One slot at the tip: never torn, never another position's. Mutants 1 to 4. */
struct Tip : rl::test_suite<Tip, 2> {
    Ring ring;
    void before() { ring.clear(); }
    void thread(unsigned index)
    {
        if (index == 0) {
            for (unsigned value = 1; value <= WRITES; value++)
                ring.put(value, FLAG_LAST);
            return;
        }
        for (unsigned turn = 0; turn < 4 * WRITES; turn++) {
            unsigned at = turn % WRITES;
            if (!ring.there(at))
                continue;
            unsigned i = at % SLOTS, one = ring.first[i]($).load(relaxed), two = ring.second[i]($).load(relaxed);
            if (ring.valid(at))
                RL_ASSERT(one == at + 1 && two == at + 1);
        }
    }
};

/* A span up to head, without a look at commit words; changed tells of its marks. Mutants 1, 4, 5, 6. */
struct Span : rl::test_suite<Span, 2> {
    Ring ring;
    void before() { ring.clear(); }
    void thread(unsigned index)
    {
        if (index == 0) {
            for (unsigned value = 1; value <= WRITES; value++) {
                ring.put_payload(value, FLAG_LAST);
                if (value == 3 && mutant != 6) // = fh_ring.h: fh_store_relaxed(&writer->ring->changed, writer->position + 1);
                    ring.changed($).store(3, relaxed);
                ring.put_commit();
                if (value % 2 == 0)
                    ring.flush();
                if (value == 4 && mutant == 6)
                    ring.changed($).store(3, relaxed);
            }
            return;
        }
        for (unsigned at = 0, turn = 0; turn < 16; turn++) {
            unsigned end = ring.head($).load(acquire); // = feedhandler_reader.h: uint64_t end = fh_load_acquire(&reader->ring->head);
            if (end == at)
                continue;
            // = feedhandler_reader.h: if (fh_load_relaxed(&reader->ring->changed) > reader->position)
            unsigned mark = ring.changed($).load(relaxed);
            RL_ASSERT(mark > at || at >= 3 || end < 3);
            unsigned one[WRITES], two[WRITES];
            for (unsigned p = at; p < end; p++) {
                one[p] = ring.first[p % SLOTS]($).load(relaxed);
                two[p] = ring.second[p % SLOTS]($).load(relaxed);
            }
            if (ring.valid(at))
                for (unsigned p = at; p < end; p++)
                    RL_ASSERT(one[p] == p + 1 && two[p] == p + 1);
            at = end;
        }
    }
};

/* Events of two records; the writer dies at any store of its second event and is succeeded. Every delivered event is whole, and
 * no position ever changes its content. Mutants 7 (no fence on resuming), 8 (resumes at head), 9 (no EPOCH), 4. */
struct Restart : rl::test_suite<Restart, 2> {
    Ring ring;
    void before() { ring.clear(); }

    /* The second event up to its death, which falls before, between or after any of its stores. */
    void dying(unsigned death)
    {
        ring.put(1, 0);
        ring.put(1, FLAG_LAST);
        ring.flush();
        for (unsigned record = 0; record < 2; record++, death -= 4) {
            unsigned i = ring.position % SLOTS;
            if (death < 1)
                return;
            ring.claimed++;
            ring.claim($).store(ring.claimed, relaxed);
            if (death < 2)
                return; /* dead before its release fence */
            rl::atomic_thread_fence(release, $);
            ring.first[i]($).store(2, relaxed);
            ring.flags[i]($).store(record == 1 ? FLAG_LAST : 0, relaxed);
            if (death < 3)
                return;
            ring.second[i]($).store(2, relaxed);
            if (death < 4)
                return;
            ring.put_commit();
        }
    }

    void succeed()
    {
        ring.claimed = ring.claim($).load(relaxed);
        ring.position = ring.head($).load(relaxed);
        while (mutant != 8 && ring.position < ring.claimed // = fh_ring.c: while (position < ring->claim && slots[
               && ring.commit[ring.position % SLOTS]($).load(relaxed) == ring.position + 1)
            ring.position++;
        ring.claim($).store(ring.claimed, relaxed); // = fh_ring.c: fh_store_relaxed(&ring->claim, writer->claimed);
        if (mutant != 7)
            rl::atomic_thread_fence(release, $);    // = fh_ring.c: fh_fence_release();
        if (mutant != 9)
            ring.put(9, FLAG_LAST | FLAG_EPOCH);    // = fh_ring.c: fh_ring_put(writer, &epoch);
        ring.flush();                               // = fh_ring.c: fh_ring_flush(writer);
        ring.put(3, 0);
        ring.put(3, FLAG_LAST);
    }

    void thread(unsigned index)
    {
        if (index == 0) {
            dying(rl::rand(9));
            succeed();
            return;
        }
        unsigned at = 0, pending = 0, previous = 0; /* pending: value of the records held, 0: none */
        for (unsigned turn = 0; turn < 20; turn++) {
            if (!ring.there(at))
                continue;
            unsigned i = at % SLOTS, one = ring.first[i]($).load(relaxed), flag = ring.flags[i]($).load(relaxed),
                     two = ring.second[i]($).load(relaxed);
            if (!ring.valid(at))
                return; /* lapped */
            RL_ASSERT(one == two && one != 0);
            RL_ASSERT(one >= previous || previous == 9);
            if (flag & FLAG_EPOCH) // = feedhandler_reader.h: if (fh_ring_is(&out[used], FH_EPOCH) && used > whole)
                pending = 0;
            RL_ASSERT(pending == 0 || pending == one);
            pending = flag & FLAG_LAST ? 0 : one;
            previous = one;
            at++;
        }
    }
};

/* Two copies and a latch. Mutants 10 (no fence before the fill), 11 (flip relaxed), 12 (no acquire fence), 13 (one flip tolerated). */
struct Latch : rl::test_suite<Latch, 2> {
    word latch, one[2], two[2];
    void before()
    {
        latch($) = 0;
        for (int i = 0; i < 2; i++) {
            one[i]($) = 0;
            two[i]($) = 0;
        }
    }
    void thread(unsigned index)
    {
        if (index == 0) {
            for (unsigned value = 1; value <= 4; value++) {
                if (mutant != 10)
                    rl::atomic_thread_fence(release, $); // = fh_state.c: fh_fence_release();
                unsigned spare = (latch($).load(relaxed) + 1) & 1; // = fh_state.c: return (unsigned)(fh_load_relaxed(latch) + 1) & 1u;
                one[spare]($).store(value, relaxed);
                two[spare]($).store(value, relaxed);
                // = fh_state.c: fh_store_release(latch, fh_load_relaxed(latch) + 1);
                latch($).store(value, mutant == 11 ? relaxed : release);
            }
            return;
        }
        for (int turn = 0; turn < 3; turn++) {
            unsigned before = latch($).load(acquire); // = feedhandler_reader.h: uint64_t before = fh_load_acquire(latch);
            unsigned a = one[before & 1]($).load(relaxed), b = two[before & 1]($).load(relaxed);
            if (mutant != 12)
                rl::atomic_thread_fence(acquire, $);
            unsigned after = latch($).load(relaxed);  // = feedhandler_reader.h: if (fh_load_relaxed(latch) == before)
            if (after == before || (mutant == 13 && after == before + 1))
                RL_ASSERT(a == before && b == before);
        }
    }
};

/* Sleep and wake with a gap between wakes. The membarrier of the waiter is a sequentially consistent fence on both sides; the
 * futex is a mutex; the clock is a word that every look advances. Nobody may sleep while a record is there and the writer has
 * finished. Mutants 14 (no membarrier), 15 (number loaded after the last look), 16 (clock read after the last look),
 * 17 (waiter ignores the gap), 18 (writer clears the flag after the wake). */
struct Wake : rl::test_suite<Wake, 2> {
    enum { GAP = 3, RECORDS = 3 };
    word head, waiting, wake_seq, wake_last, clock;
    rl::mutex bucket;
    rl::var<unsigned> asleep;
    unsigned reader_position;

    void before()
    {
        head($) = 0;
        waiting($) = 0;
        wake_seq($) = 0;
        wake_last($) = 0;
        clock($) = 10;
        asleep($) = 0;
        reader_position = 0;
    }
    unsigned now() { return clock($).fetch_add(1, relaxed); }

    void writer()
    {
        for (unsigned record = 1; record <= RECORDS; record++) {
            head($).store(record, release);
            if (mutant != 14)
                rl::atomic_thread_fence(rl::mo_seq_cst, $); /* where the waiter's membarrier may interrupt us */
            if (waiting($).load(relaxed) == 0)   // = fh_ring.c: fh_load_relaxed(writer->waiting) == 0
                continue;
            unsigned time = now();               // = fh_ring.c: now_ns = fh_clock_ns(CLOCK_MONOTONIC);
            if (time - wake_last($).load(relaxed) < GAP)
                continue;
            if (mutant != 18)
                waiting($).store(0, relaxed);    // = fh_ring.c: fh_store_relaxed(writer->waiting, 0u);
            wake_last($).store(time, relaxed);   // = fh_ring.c: fh_store_relaxed(&ring->wake_last_ns, now_ns);
            // = fh_ring.c: fh_store_release(&ring->wake_seq, ring->wake_seq + 1);
            wake_seq($).store(wake_seq($).load(relaxed) + 1, release);
            bucket.lock($);                      // = fh_ring.c: FUTEX_WAKE, INT_MAX
            asleep($) = 0;
            bucket.unlock($);
            if (mutant == 18)
                waiting($).store(0, relaxed);
        }
    }

    /* One fh_feed_wait(). Answers whether it ended asleep. */
    bool wait()
    {
        unsigned time = mutant == 16 ? 0 : now();
        unsigned number = wake_seq($).load(acquire); // = feedhandler_feed.h: word[count].val = fh_load_acquire(&ring->wake_seq);
        unsigned last = wake_last($).load(relaxed);
        waiting($).store(1, relaxed);                // = feedhandler_feed.h: fh_store_relaxed(&feed->readers->waiting[i], 1u);
        if (mutant != 14)
            rl::atomic_thread_fence(rl::mo_seq_cst, $); // = feedhandler_feed.h: MEMBARRIER_CMD_GLOBAL_EXPEDITED
        if (head($).load(acquire) > reader_position) // = feedhandler_feed.h: fh_load_acquire(&reader->ring->head) > reader->position
            return false;
        if (mutant == 15)
            number = wake_seq($).load(acquire);
        if (mutant == 16)
            time = now();
        if (mutant != 17 && time < last + GAP) // = feedhandler_feed.h: if (quiet_end > now && quiet_end < until)
            return false;
        bucket.lock($);
        bool same = wake_seq($).load(relaxed) == number;
        if (same)
            asleep($) = 1;
        bucket.unlock($);
        return same;
    }

    void thread(unsigned index)
    {
        if (index == 0)
            return writer();
        for (int turn = 0; turn < 6; turn++) {
            if (wait()) {
                /* Woken or not is the writer's affair; go on as one who was woken only if it woke us. */
                bucket.lock($);
                bool still = asleep($) != 0;
                bucket.unlock($);
                if (still)
                    return;
            }
            reader_position = head($).load(acquire);
        }
    }
    void after() { RL_ASSERT(asleep($) == 0 || head($).load(relaxed) == reader_position); }
};

template <typename Model> static int run(const char *executions)
{
    rl::test_params parameters;
    parameters.search_type = rl::sched_random;
    parameters.iteration_count = (rl::iteration_t)strtoull(executions, NULL, 10);
    return rl::simulate<Model>(parameters) ? 0 : 1;
}

int main(int count, char **argument)
{
    if (count != 4)
        return 2;
    mutant = atoi(argument[2]);
    if (!strcmp(argument[1], "tip"))
        return run<Tip>(argument[3]);
    if (!strcmp(argument[1], "span"))
        return run<Span>(argument[3]);
    if (!strcmp(argument[1], "restart"))
        return run<Restart>(argument[3]);
    if (!strcmp(argument[1], "latch"))
        return run<Latch>(argument[3]);
    return strcmp(argument[1], "wake") ? 2 : run<Wake>(argument[3]);
}
