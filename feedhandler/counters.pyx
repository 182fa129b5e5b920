# cython: language_level=3
"""A worker's counters, sessions, latency histograms and distinct errors, read from shared memory.

Works with or without a living supervisor or worker: everything is read from `worker-<n>.counters`.
"""
import os

from libc.string cimport strerror
from libc.errno cimport errno
from feedhandler._cext cimport *

STAGES = ("decode", "publish", "venue", "loop", "first_data")
"""Names of enum fh_stage: receive to decoded, receive to in the ring, venue's event time to receive, one turn of
the worker's loop, subscription to first data."""

SESSION_STATES = ("free", "connecting", "up", "down", "backing off")


cdef str _text(const char *at, size_t size):
    return at[:size].split(b"\0", 1)[0].decode("utf-8", "replace")


cdef class Counters:
    """One worker's counters file, mapped read-only. OSError says which file is missing."""
    cdef fh_counters *file
    cdef readonly int worker

    def __init__(self, directory, int worker):
        cdef int dir_fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            self.file = fh_counters_open(dir_fd, worker)
            if self.file == NULL:
                raise OSError(errno, f"{strerror(errno).decode()}: worker-{worker}.counters is missing or not ours",
                              str(directory))
        finally:
            os.close(dir_fd)
        self.worker = worker

    def __dealloc__(self):
        if self.file != NULL:
            fh_counters_close(self.file)

    @property
    def pid(self):
        return self.file.pid

    @property
    def pid_start(self):
        return self.file.pid_start

    @property
    def heartbeat_ns(self):
        """CLOCK_MONOTONIC ns of the worker's last sign of life."""
        return self.file.heartbeat_ns

    def values(self):
        """{counter name: value}, in file order."""
        return {fh_counter_name(i).decode(): self.file.counter[i] for i in range(FH_COUNTER_COUNT)}

    def latency(self, str stage, quantiles=(0.5, 0.9, 0.99, 0.999)):
        """{"count", "min_ns", "max_ns", "mean_ns", "p50_ns", …} of one stage; values are upper bucket edges, 1.6 % wide."""
        cdef fh_histogram *histogram = &self.file.stage[STAGES.index(stage)]
        found = {"count": histogram.count, "min_ns": histogram.min_ns if histogram.count else 0, "max_ns": histogram.max_ns,
                 "mean_ns": histogram.sum_ns // histogram.count if histogram.count else 0}
        for q in quantiles:
            found[f"p{100 * q:g}_ns"] = fh_histogram_quantile(histogram, q)
        return found

    def buckets(self, str stage):
        """The stage's raw bucket counts, for merging several workers."""
        cdef fh_histogram *histogram = &self.file.stage[STAGES.index(stage)]
        return [histogram.bucket[i] for i in range(FH_HISTOGRAM_BUCKETS)]

    def sessions(self):
        """A dict a session that is or was in use."""
        found = []
        for index in range(FH_SESSION_MAX):
            row = &self.file.session[index]
            if row.state == 0:
                continue
            found.append({
                "worker": self.worker, "session": index, "connection": row.id,
                "state": SESSION_STATES[row.state] if row.state < len(SESSION_STATES) else str(row.state),
                "venue": _text(row.venue, 24), "endpoint": _text(row.endpoint, 24), "address": _text(row.address, 48),
                "opened_ns": row.opened_ns, "frame_ns_last": row.frame_ns_last, "frames": row.frames, "bytes": row.bytes,
                "records": row.records, "gaps": row.gaps, "reconnects": row.reconnects, "streams": row.streams,
                "streams_live": row.streams_live, "close_code_last": row.close_code_last,
                "first": row.first, "second": row.second, "behind_ns": row.behind_ns, "behind_count": row.behind_count,
                "lag_ns_mean": row.lag_sum_ns // <int64_t>row.lag_count if row.lag_count else None})
        return found

    def errors(self):
        """A dict a distinct error, most frequent first."""
        found = []
        for index in range(FH_ERROR_ROW_MAX):
            row = &self.file.error[index]
            if row.count:
                found.append({"worker": self.worker, "count": row.count, "first_ns": row.first_ns, "last_ns": row.last_ns,
                              "code": <int>row.code, "session": row.session, "text": _text(row.text, 224)})
        return sorted(found, key=lambda error: -error["count"])
