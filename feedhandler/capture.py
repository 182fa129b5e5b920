"""Recorded exchange traffic: the capture format, read record by record.

One gzip (or plain) file, UTF-8, one record a line, in receive order:

    recv_time_ns <TAB> connection <TAB> direction <TAB> payload

direction: in (text frame from the venue), in64 (binary frame, base64), out (text frame we sent), conn (connection
opened; its URL), rest (HTTP answer: URL, one space, body). Payloads hold neither tab nor line break.
A line that is none of this raises CaptureError with file and line; nothing is skipped.
"""
import base64
import binascii
import gzip
import os
import zlib

import msgspec

DIRECTIONS = ("in", "in64", "out", "conn", "rest")
LINE_SIZE_MAX = 64 << 20  # four times the message cap: a REST answer, or a frame in base64


class CaptureError(ValueError):
    """A capture that cannot be read; the text says which file, which line, and what is wrong with it."""


class Record(msgspec.Struct):
    """One line. payload is bytes as received; of in64 already decoded."""
    line: int
    recv_ns: int
    connection: str
    direction: str
    payload: bytes

    def rest(self):
        """(URL, body) of a rest record."""
        url, _, body = self.payload.partition(b" ")
        return url.decode(), body


class Capture:
    """A capture file, to be iterated once. done and total are bytes of the file, for progress."""

    def __init__(self, path):
        self.path = os.fspath(path)
        try:
            self._file = open(self.path, "rb")
        except OSError as error:
            raise CaptureError(f"{self.path}: {error.strerror}; give the path of a capture (.tsv or .tsv.gz)") from error
        self.total = os.fstat(self._file.fileno()).st_size

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def close(self):
        self._file.close()

    @property
    def done(self):
        return self._file.tell()

    def __iter__(self):
        packed = self._file.peek(2)[:2] == b"\x1f\x8b"
        lines = gzip.GzipFile(fileobj=self._file) if packed else self._file
        number = 0
        try:
            while line := lines.readline(LINE_SIZE_MAX + 1):
                number += 1
                yield self._record(number, line)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise CaptureError(f"{self.path}:{number + 1}: the file is damaged or cut off ({error}); "
                               f"the {number} lines before it are sound") from error

    def _record(self, number, line):
        where = f"{self.path}:{number}"
        if len(line) > LINE_SIZE_MAX:
            raise CaptureError(f"{where}: the line is longer than {LINE_SIZE_MAX} bytes")
        if not line.endswith(b"\n"):
            raise CaptureError(f"{where}: the last line has no line break: the recording was cut off here")
        fields = line[:-1].split(b"\t")
        if len(fields) != 4:
            raise CaptureError(f"{where}: {len(fields)} fields where time, connection, direction and payload are expected, "
                               f"parted by tabs")
        time, connection, direction, payload = fields
        if not time.isdigit() or len(time) > 19:
            raise CaptureError(f"{where}: receive time {_shown(time)} is not a number of nanoseconds since 1970")
        direction = direction.decode("ascii", "replace")
        if direction not in DIRECTIONS:
            raise CaptureError(f"{where}: direction {direction[:20]!r} is not one of {', '.join(DIRECTIONS)}")
        if direction == "in64":
            payload = _binary(where, payload)
        return Record(number, int(time), connection.decode("utf-8", "replace"), direction, payload)


def _binary(where, payload):
    try:
        return base64.b64decode(payload, validate=True)
    except binascii.Error as error:
        raise CaptureError(f"{where}: the payload of an in64 record is not base64 ({error})") from error


def _shown(text):
    return repr(text[:40].decode("ascii", "replace"))
