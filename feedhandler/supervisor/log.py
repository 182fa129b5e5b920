"""The supervisor's log: JSON lines into a bounded file, or to stderr in the foreground. Only notable events; never data."""
import collections
import json
import os
import sys
import time

SIZE_MAX = 2 << 20   # bytes; the file before is kept as supervisor.log.1: 4 MiB in all
RECENT_MAX = 50      # events `status` can show


class Log:
    """log(event, **fields). Control bytes never reach the file: JSON escapes them."""

    def __init__(self):
        self.recent = collections.deque(maxlen=RECENT_MAX)
        self.file, self.path, self.size = None, None, 0
        self.to_stderr = False

    def open(self, path):
        """Write to this file from now on, what was said before included."""
        self.path = path
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)
        self.file = open(fd, "a", buffering=1)
        self.size = os.fstat(fd).st_size
        for entry in self.recent:
            self._write(entry)

    def __call__(self, event, **fields):
        entry = {"ts_ns": time.time_ns(), "event": event, **fields}
        self.recent.append(entry)
        self._write(entry)

    def _write(self, entry):
        line = json.dumps(entry, default=str) + "\n"
        if self.to_stderr:
            sys.stderr.write(line)
        if self.file is None:
            return
        if self.size + len(line) > SIZE_MAX:
            self.file.close()
            os.replace(self.path, f"{self.path}.1")
            self.file, self.size = open(os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640), "a", buffering=1), 0
        self.file.write(line)
        self.size += len(line)

    def close(self):
        if self.file is not None:
            self.file.close()
            self.file = None
