"""What a venue does to a connection that takes more than it will push: it queues, so that everything comes, later and later.

Whole messages, in order, at a rate; the queue's head says how late the connection is. Times come from the caller.
"""
import collections

CREDIT_S = 0.1      # what was not used of the rate is kept so long: turns of the sender and ticks are shorter


def split(data):
    """The frames of bytes on the wire, each with its header. What is no whole frame, as a fault makes it, is the last one as it is."""
    at, frames = 0, []
    while at + 2 <= len(data):
        size, start = data[at + 1] & 0x7F, at + 2
        if size >= 126:
            start += 2 if size == 126 else 8
            size = int.from_bytes(data[at + 2:start])
        if start + size > len(data):
            break
        frames.append(data[at:start + size])
        at = start + size
    return frames + ([data[at:]] if at < len(data) else [])


class Throttle:
    """At most so many messages and bytes a second (0: any number) until a time."""

    def __init__(self, now, messages_per_s=0.0, bytes_per_s=0.0, until=float("inf"), drop_after_s=0.0):
        self.messages_per_s, self.bytes_per_s, self.until = messages_per_s, bytes_per_s, until
        self.drop_after_s = drop_after_s        # later than this, the venue closes the connection; 0: never
        self.queue = collections.deque()        # (queued at, frame)
        self.size = 0                           # bytes in the queue
        self.messages = self.bytes = 0.0        # what may be sent now; below 0 after a message larger than what was left
        self.filled_at = now

    def fill(self, now):
        passed, self.filled_at = now - self.filled_at, now
        self.messages = min(self.messages + passed * self.messages_per_s, max(1.0, CREDIT_S * self.messages_per_s))
        self.bytes = min(self.bytes + passed * self.bytes_per_s, max(1.0, CREDIT_S * self.bytes_per_s))

    def may_send(self, now):
        return now >= self.until or (not self.messages_per_s or self.messages >= 1) and (not self.bytes_per_s or self.bytes > 0)

    def pass_on(self, data, now):
        """Queue these frames behind the others. Returns the bytes whose time has come."""
        self.queue += ((now, frame) for frame in split(data))
        self.size += len(data)
        self.fill(now)
        parts = []
        while self.queue and self.may_send(now):
            _, frame = self.queue.popleft()
            self.messages -= 1
            self.bytes -= len(frame)
            self.size -= len(frame)
            parts.append(frame)
        return b"".join(parts)

    def late_s(self, now):
        """How old the message is that comes next."""
        return now - self.queue[0][0] if self.queue else 0.0

    def is_over(self, now):
        return now >= self.until and not self.queue

    def must_drop(self, now):
        return 0 < self.drop_after_s < self.late_s(now)
