"""REST of one venue: GETs in order of priority under the address's weight budget. Only the supervisor has one.

What blocks: nobody; a request waits for its turn, its budget and the end of a ban in its own coroutine. 429 and 418 are
honoured: nothing goes out before Retry-After, also after a restart.
"""
import asyncio
import collections
import email.utils
import heapq
import itertools
import random
import ssl
import time

import aiohttp

BODY_SIZE_MAX = 64 << 20     # the largest instrument list recorded is 22 MB
TIMEOUT_S = 20.0
CHUNK_SIZE = 1 << 16
QUEUE_MAX = 4096             # waiting requests; one a book at most
OPEN_MAX = 4                 # requests at once
RETRY_AFTER_DEFAULT_S = {429: 10.0, 418: 120.0}
RETRY_AFTER_MAX_S = 3 * 86_400.0   # the longest documented ban is three days
BUSY_PAUSE_S = 0.05
BACKOFF_FIRST_S, BACKOFF_MAX_S = 0.25, 30.0

SNAPSHOT, LIST = 0, 1
"""Priorities: a book that waits for its snapshot goes before a list of instruments."""

Reply = collections.namedtuple("Reply", "status body reason retry_s", defaults=(b"", "", 0.0))
"""status 0: no answer; reason says why. retry_s: ask again not before."""


class Rest:
    """base is the address before the path; key names the budget in the ledger; counted: budgets of connection attempts
    where the venue counts them together with REST: then one request at a time goes out, and a ban is theirs too."""

    def __init__(self, venue, base, ca_file, ledger, key, log, counted=()):
        self.venue, self.base, self.ledger, self.key, self.log = venue, base.rstrip("/"), ledger, key, log
        self.counted, self.open_max = counted, 1 if counted else OPEN_MAX
        self.tls = ssl.create_default_context(cafile=ca_file or None)
        self.session = None
        self.queue, self.order, self.more = [], itertools.count(), asyncio.Event()
        self.sent = self.failed = self.punished = 0
        self.task = asyncio.get_running_loop().create_task(self._run())
        self.open = set()

    async def get(self, request, priority=SNAPSHOT):
        """Reply to a venue.RestRequest, however long its turn takes. Never raises for what the network does."""
        if len(self.queue) >= QUEUE_MAX:
            return Reply(0, b"", f"{QUEUE_MAX} REST requests are waiting at {self.venue}", 1.0)
        future = asyncio.get_running_loop().create_future()
        heapq.heappush(self.queue, (priority, next(self.order), request, future))
        self.more.set()
        return await future

    async def _run(self):
        """Take requests in order; each waits for its budget here, so that none overtakes an earlier one."""
        while True:
            while not self.queue or len(self.open) >= self.open_max:
                self.more.clear()
                await self.more.wait()
            request, future = self.queue[0][2:]
            if future.cancelled():
                heapq.heappop(self.queue)
            elif self._granted(request.weight):
                if self.queue[0][3] is not future:
                    raise AssertionError("the head of the queue changed without an await")
                heapq.heappop(self.queue)
                task = asyncio.get_running_loop().create_task(self._answer(request, future))
                self.open.add(task)
                task.add_done_callback(self._closed)
            else:
                await asyncio.sleep(max(BUSY_PAUSE_S, min(self.ledger.wait_s(self.key, request.weight), 1.0)))

    def _granted(self, weight):
        from feedhandler.supervisor.ledger import Busy
        try:
            return self.ledger.take(self.key, weight, weight) > 0
        except Busy:
            return False

    def _closed(self, task):
        self.open.discard(task)
        self.more.set()

    async def _answer(self, request, future):
        reply = await self._fetch(request)
        if not future.done():
            future.set_result(reply)

    async def _fetch(self, request):
        if self.session is None:
            self.session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT_S),
                                                 connector=aiohttp.TCPConnector(ssl=self.tls, limit=self.open_max))
        self.sent += 1
        try:
            async with self.session.get(self.base + request.path) as answer:
                body = bytearray()
                async for chunk in answer.content.iter_chunked(CHUNK_SIZE):
                    body += chunk
                    if len(body) > BODY_SIZE_MAX:
                        return Reply(0, b"", f"the answer is larger than {BODY_SIZE_MAX} bytes", BACKOFF_MAX_S)
                if answer.status == 200:
                    return Reply(200, bytes(body))
                return self._refused(answer, body)
        except (aiohttp.ClientError, asyncio.TimeoutError, ssl.SSLError, OSError, ValueError) as error:
            self.failed += 1
            return Reply(0, b"", f"{self.base}{request.path}: {_cause(error)}", 1.0)

    def _refused(self, answer, body):
        self.failed += 1
        said = body[:200].decode("utf-8", "replace").strip()
        reason = f"HTTP {answer.status} {said}".strip()
        if answer.status not in RETRY_AFTER_DEFAULT_S and "Retry-After" not in answer.headers:
            return Reply(answer.status, b"", reason, 1.0)
        wait_s = retry_after(answer.headers.get("Retry-After"), RETRY_AFTER_DEFAULT_S.get(answer.status, 1.0), time.time())
        self.punished += 1
        ban = self.ledger.ban if "Retry-After" in answer.headers else self.ledger.punish
        for key in (self.key, *self.counted):
            ban(key, wait_s, f"{self.venue} REST: {reason}")
        wait_s = max(wait_s, self.ledger.wait_s(self.key))
        self.log("rest_banned", venue=self.venue, status=answer.status, retry_s=wait_s, reason=said)
        return Reply(answer.status, b"", reason, wait_s)

    async def get_until(self, request, on_failure, priority=LIST):
        """The body, however often it takes: backoff with jitter, Retry-After honoured; on_failure(reason) each time."""
        backoff_s = BACKOFF_FIRST_S
        while True:
            reply = await self.get(request, priority)
            if reply.status == 200:
                return reply.body
            on_failure(reply.reason)
            await asyncio.sleep(max(reply.retry_s, backoff_s * random.uniform(0.5, 1.0)) if reply.status else
                                backoff_s * random.uniform(0.5, 1.0))
            backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)

    def document(self):
        return {"waiting": len(self.queue), "sent": self.sent, "failed": self.failed, "punished": self.punished}

    async def close(self):
        self.task.cancel()
        for task in self.open:
            task.cancel()
        await asyncio.gather(self.task, *self.open, return_exceptions=True)
        if self.session is not None:
            await self.session.close()


def _cause(error):
    """What went wrong, in the system's own words where it has them."""
    if isinstance(error, asyncio.TimeoutError):
        return f"no answer within {TIMEOUT_S:g} s"
    inner = getattr(error, "os_error", error)
    return getattr(inner, "strerror", None) or f"{type(error).__name__} {error}".strip()


def retry_after(text, default_s, now_s):
    """Seconds of a Retry-After header: a number or an HTTP date; what cannot be read is the default."""
    if not text:
        return default_s
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - now_s
        except (TypeError, ValueError):
            return default_s
    return min(max(seconds, 0.0), RETRY_AFTER_MAX_S) if seconds == seconds else default_s
