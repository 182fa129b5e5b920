"""One WebSocket connection: picows frames in, the publisher's records out. The only file of the worker that knows picows.

Per frame: stamp, strictness (RFC 6455 where picows leaves it to the listener), publisher.frame(); at the end of each
receive batch publisher.flush() and the notices. What a session decides nothing about goes to its owner (link.py):
    opened(session) · control(session, payload) · ping(session, payload) · notices() · closed(session, code, reason)
    failed(session, exception)
Payload pointers are picows' read buffer: valid during the callback only, with 256 readable bytes behind the payload
(picows keeps them spare); a reassembled message has FH_JSON_PAD zero bytes behind it. Buffers grow to frame_size_max
and no further. An exception in here is counted, noted and closes the session with 1011.
"""
import asyncio
import fcntl
import logging
import socket
import ssl
import sys
import termios

import picows
from libc.stdint cimport INT64_MAX, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy, memset
from posix.time cimport clock_gettime, timespec, CLOCK_MONOTONIC, CLOCK_REALTIME
from picows.picows cimport WSCloseCode, WSFrame, WSListener, WSMsgType, WSTransport
from feedhandler._cext cimport *
from feedhandler.venue cimport Venue
from feedhandler.worker.publisher cimport Publisher

cdef enum:
    CLOSE_PROTOCOL = 1002
    CLOSE_TEXT = 1007
    CLOSE_TOO_BIG = 1009
    CLOSE_INTERNAL = 1011
    FRAGMENT_SIZE_FIRST = 16384
    PAD_SIZE = 64               # FH_JSON_PAD, as a number the compiler knows

CONNECT_TIMEOUT_S = 15.0        # name, TCP, TLS and upgrade together
TLS_TIMEOUT_S = 10.0
UPGRADE_TIMEOUT_S = 5.0
READ_BUFFER_SIZE = 65536
TLS_BUFFER_SIZE = 131072
TCP_CLOSE, TCP_CLOSE_WAIT = 7, 8     # tcpi_state, the first byte of TCP_INFO
KEEPALIVE = ((socket.SO_KEEPALIVE, 1), (socket.TCP_KEEPIDLE, 1), (socket.TCP_KEEPINTVL, 1), (socket.TCP_KEEPCNT, 2),
             (socket.TCP_USER_TIMEOUT, 2200))
"""Nothing heard for 1 s: a probe, another after 1 s, dead at 3 s. While something of ours waits for its acknowledgement, a ping
for instance, the kernel sends no probes and would repeat it for minutes: 2.2 s end that. Above 2 s they leave the probes alone."""

NO_QUEUE = bytes(4)             # room for the int that FIONREAD, which is SIOCINQ, answers

STATUS = {"STALE": FH_STALE_STREAM, "LIVE": FH_LIVE, "REJECTED": FH_REJECTED, "SESSION_UP": FH_SESSION_UP,
          "SESSION_DOWN": FH_SESSION_DOWN}
"""Codes of the STATUS records a worker writes beside the publisher's own."""

_quiet = logging.Logger("feedhandler.session", logging.CRITICAL + 1)    # picows logs per event; we count and note


cdef inline uint64_t clock_ns(int clock) noexcept nogil:
    cdef timespec now
    clock_gettime(clock, &now)
    return <uint64_t>now.tv_sec * 1000000000 + <uint64_t>now.tv_nsec


# -- UTF-8 across fragments ---------------------------------------------------------------------------------------

cdef struct fh_utf8:
    uint8_t left        # continuation bytes still to come
    uint8_t low, high   # bounds of the next one: they exclude overlong forms, surrogates and what is above U+10FFFF


cdef bint utf8_lead(fh_utf8 *state, uint8_t byte) noexcept nogil:
    state.low, state.high = 0x80, 0xBF
    if 0xC2 <= byte <= 0xDF:
        state.left = 1
    elif 0xE0 <= byte <= 0xEF:
        state.left = 2
        if byte == 0xE0:
            state.low = 0xA0
        elif byte == 0xED:
            state.high = 0x9F
    elif 0xF0 <= byte <= 0xF4:
        state.left = 3
        if byte == 0xF0:
            state.low = 0x90
        elif byte == 0xF4:
            state.high = 0x8F
    else:
        return False
    return True


cdef bint utf8_feed(fh_utf8 *state, const char *text, size_t size) noexcept nogil:
    """False if these bytes cannot go on as UTF-8. Eight ASCII bytes at a time where there are no others."""
    cdef size_t i = 0
    cdef uint64_t eight
    cdef uint8_t byte
    while i < size:
        if state.left == 0 and i + 8 <= size:
            memcpy(&eight, text + i, 8)
            if eight & <uint64_t>0x8080808080808080 == 0:
                i += 8
                continue
        byte = <uint8_t>text[i]
        i += 1
        if state.left:
            if byte < state.low or byte > state.high:
                return False
            state.low, state.high = 0x80, 0xBF
            state.left -= 1
        elif byte >= 0x80 and not utf8_lead(state, byte):
            return False
    return True


def utf8_valid(*parts):
    """Whether these parts, one after the other, are valid and complete UTF-8."""
    cdef fh_utf8 state
    memset(&state, 0, sizeof(state))
    for part in parts:
        if not utf8_feed(&state, <const char *>part, len(part)):
            return False
    return state.left == 0


# -- the listener -------------------------------------------------------------------------------------------------

cdef class Session(WSListener):
    cdef Publisher publisher
    cdef Venue venue
    cdef object owner
    cdef WSTransport transport
    cdef char *message              # fragments of the open message
    cdef size_t message_size, message_capacity, frame_size_max
    cdef int opcode                 # of the open message; 0: none
    cdef fh_utf8 utf8
    cdef bint strict_utf8, ended    # ended: nothing that still arrives counts
    cdef readonly uint32_t index    # of the session in records and in the counters' table
    cdef readonly uint64_t frames, frame_ns_last
    cdef readonly int close_code    # as the peer sent it, or ours where we failed the connection
    cdef readonly str close_reason

    def __cinit__(self, Publisher publisher not None, Venue venue not None, owner, uint32_t index, size_t frame_size_max,
                  bint strict_utf8):
        self.publisher, self.venue, self.owner, self.index = publisher, venue, owner, index
        self.frame_size_max, self.strict_utf8 = frame_size_max, strict_utf8
        self.close_code, self.close_reason = 1006, ""
        memset(&self.utf8, 0, sizeof(self.utf8))
        self.room(FRAGMENT_SIZE_FIRST)

    def __dealloc__(self):
        free(self.message)

    cpdef on_ws_connected(self, WSTransport transport):
        self.transport = transport
        transport.disconnected_future.add_done_callback(self.disconnected)
        if self.ended:              # given up while it connected
            transport.disconnect(False)
            return
        try:
            self.owner.opened(self)
        except Exception as error:
            self.broken(error)

    cpdef on_ws_frame(self, WSTransport transport, WSFrame frame):
        cdef uint64_t now = clock_ns(CLOCK_REALTIME)
        if self.ended:
            return
        self.frames += 1
        self.frame_ns_last = now
        try:
            if frame.rsv1 | frame.rsv2 | frame.rsv3:
                self.fail(CLOSE_PROTOCOL, "RSV bits set, and no extension was agreed")
            elif frame.msg_type == WSMsgType.TEXT and frame.fin and not self.opcode:
                self.whole(frame.payload_ptr, frame.payload_size, self.strict_utf8, now)
            elif frame.msg_type >= WSMsgType.CLOSE:
                self.control_frame(frame)
            else:
                self.part(frame, now)
            if frame.last_in_buffer:
                self.publisher.flush(clock_ns(CLOCK_MONOTONIC))
                if self.publisher.notice_count:
                    self.owner.notices()
        except Exception as error:
            self.broken(error)

    cpdef pause_writing(self):
        """Nothing to do: what we send is paced to a few messages a second."""

    cpdef resume_writing(self):
        """See pause_writing()."""

    cdef whole(self, const char *payload, size_t size, bint text, uint64_t ts_recv_ns):
        """One whole message to the publisher, and to the venue's control plane if it asks for it."""
        if text and (not utf8_feed(&self.utf8, payload, size) or self.utf8.left):
            self.fail(CLOSE_TEXT, "a text message is not UTF-8")
            return
        self.publisher.frame(self.venue, self.index, payload, size, ts_recv_ns)
        if self.publisher.control:
            self.owner.control(self, payload[:size])

    cdef part(self, WSFrame frame, uint64_t ts_recv_ns):
        """A frame that is no whole text message: binary, or part of a message."""
        cdef size_t size = frame.payload_size
        cdef bint text
        if (frame.msg_type == WSMsgType.CONTINUATION) != (self.opcode != 0):
            self.fail(CLOSE_PROTOCOL, "a continuation without a message" if not self.opcode else "a message within a message")
            return
        if not self.opcode and frame.fin:
            self.whole(frame.payload_ptr, size, False, ts_recv_ns)
            return
        if not self.opcode:
            self.opcode, self.message_size = frame.msg_type, 0
        if self.message_size + size > self.frame_size_max:
            self.fail(CLOSE_TOO_BIG, f"a message in fragments is larger than {self.frame_size_max} bytes")
            return
        text = self.opcode == WSMsgType.TEXT and self.strict_utf8
        if text and not utf8_feed(&self.utf8, frame.payload_ptr, size):
            self.fail(CLOSE_TEXT, "a text message is not UTF-8")
            return
        self.room(self.message_size + size)
        memcpy(self.message + self.message_size, frame.payload_ptr, size)
        self.message_size += size
        if frame.fin:
            self.opcode = 0
            if text and self.utf8.left:
                self.fail(CLOSE_TEXT, "a text message ends inside a character")
                return
            memset(self.message + self.message_size, 0, PAD_SIZE)
            self.whole(self.message, self.message_size, False, ts_recv_ns)

    cdef room(self, size_t size):
        """Have room for a message of this size and its padding; twice as much each time, at most the maximum."""
        cdef size_t capacity = self.message_capacity or FRAGMENT_SIZE_FIRST
        cdef char *message
        if size <= self.message_capacity:
            return
        while capacity < size:
            capacity *= 2
        message = <char *>realloc(self.message, capacity + PAD_SIZE)
        if message == NULL:
            raise MemoryError(f"no memory for a message of {size} bytes")
        self.message, self.message_capacity = message, capacity

    cdef control_frame(self, WSFrame frame):
        cdef int code
        if frame.msg_type == WSMsgType.PING:
            self.owner.ping(self, frame.get_payload_as_bytes())
        elif frame.msg_type == WSMsgType.CLOSE:
            code = frame.get_close_code()
            if frame.payload_size >= 2 and (code < 1000 or code in (1004, 1005, 1006, 1015)):
                self.fail(CLOSE_PROTOCOL, f"close code {code} may not be sent")
                return
            self.close_code = code if frame.payload_size >= 2 else 1005
            self.close_reason = frame.get_close_reason() or ""
            self.ended = True
            if not self.transport.is_close_frame_sent:
                self.transport.send_close(<WSCloseCode>(code if frame.payload_size >= 2 else 1000))
            self.transport.disconnect()

    # -- ends ---------------------------------------------------------------------------------------------------------

    cdef fail(self, int code, str reason):
        """The peer broke the protocol: count, say so, close, and hear nothing more."""
        self.count_failure(code, reason)
        self.end(code, reason)

    cdef count_failure(self, int code, str reason):
        cdef int counter = (FH_COUNTER_frames_utf8_error if code == CLOSE_TEXT else
                            FH_COUNTER_frames_oversize if code == CLOSE_TOO_BIG else FH_COUNTER_frames_protocol_error)
        self.publisher.counters.counter[counter] += 1
        note(self.publisher, code, self.index, f"closed with {code}: {reason}")

    cdef end(self, int code, str reason):
        self.ended = True
        self.close_code, self.close_reason = code, reason
        if self.transport is not None and not self.transport.is_disconnected:
            self.transport.send_close(<WSCloseCode>code, reason[:100])
            self.transport.disconnect()

    def broken(self, error):
        """An exception of ours: never silent, and the session does not go on."""
        note(self.publisher, CLOSE_INTERNAL, self.index, f"{type(error).__name__}: {error}")
        self.end(CLOSE_INTERNAL, "internal error")
        self.owner.failed(self, error)

    def disconnected(self, future):
        """The socket is gone. What picows itself refused is told by the exception it leaves."""
        error = future.exception()
        if isinstance(error, picows.WSProtocolError) and not self.ended:
            self.close_code, self.close_reason = int(error.args[0]), str(error.args[1])
            self.count_failure(self.close_code, self.close_reason)
        elif error is not None and not self.ended:
            self.close_code, self.close_reason = CLOSE_INTERNAL, f"{type(error).__name__}: {error}"
            note(self.publisher, CLOSE_INTERNAL, self.index, self.close_reason)
        self.ended = True
        self.owner.closed(self, self.close_code, self.close_reason)

    # -- what the owner has it do ------------------------------------------------------------------------------------

    def send(self, str text):
        self.transport.send(WSMsgType.TEXT, text.encode())

    def send_ping(self, bytes payload):
        self.transport.send_ping(payload)

    def send_pong(self, bytes payload):
        self.transport.send_pong(payload)

    def close(self, int code, str reason):
        """Start the closing handshake; the peer's answer, or abort(), ends it."""
        self.transport.send_close(<WSCloseCode>code, reason.encode()[:100])

    def abort(self):
        """Drop the socket, now or as soon as there is one."""
        self.ended = True
        if self.transport is not None:
            self.transport.disconnect(False)

    def is_dead(self):
        """Whether the kernel has given the connection up. A reset that comes while TLS is busy can escape the event loop."""
        if self.transport is None or self.ended or self.transport.is_disconnected:
            return False
        sock = self.transport.underlying_transport.get_extra_info("socket")
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] in (TCP_CLOSE, TCP_CLOSE_WAIT)

    def queue_size(self):
        """Bytes that wait in the kernel to be read."""
        if self.transport is None or self.ended or self.transport.is_disconnected:
            return 0
        sock = self.transport.underlying_transport.get_extra_info("socket")
        return int.from_bytes(fcntl.ioctl(sock.fileno(), termios.FIONREAD, NO_QUEUE), sys.byteorder)

    def socket_option(self, level, option):
        return self.transport.underlying_transport.get_extra_info("socket").getsockopt(level, option)


# -- connecting -----------------------------------------------------------------------------------------------

class Refused(Exception):
    """No connection. code is the HTTP status of a refusal, 0 before one; retry_s what the venue asked to wait."""

    def __init__(self, code, reason, retry_s=0.0):
        super().__init__(reason)
        self.code, self.reason, self.retry_s = code, reason, retry_s


def tls_context(ca_file):
    """Verification is always on; ca_file adds a private authority's certificates in place of the system's."""
    context = ssl.create_default_context(cafile=ca_file or None)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context


async def _socket(parsed_url, source):
    """The TCP connection from a local address ("": the system's choice), with keepalive 1/1/2 from its first moment: a
    dead path is noticed within 3.5 s."""
    loop = asyncio.get_running_loop()
    last = OSError(f"{parsed_url.host} has no address" + (f" that {source} can reach" if source else ""))
    of_source = 0 if not source else socket.AF_INET6 if ":" in source else socket.AF_INET
    for family, kind, protocol, _, address in await loop.getaddrinfo(parsed_url.host, parsed_url.port, family=of_source, type=socket.SOCK_STREAM):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, *KEEPALIVE[0])
            for option in KEEPALIVE[1:]:
                sock.setsockopt(socket.IPPROTO_TCP, *option)
            if source:
                sock.bind((source, 0))
            await loop.sock_connect(sock, address)
            return sock
        except OSError as error:
            last = error
            sock.close()
        except BaseException:
            sock.close()
            raise
    raise last


async def connect(Session session not None, url, context, source=""):
    """Open the session's WebSocket from a local address; owner.opened() is called on the way. Refused says why there is none."""
    try:
        await asyncio.wait_for(picows.ws_connect(
            lambda *_: session, url, ssl_context=context if url.startswith("wss:") else None,
            websocket_handshake_timeout=UPGRADE_TIMEOUT_S, enable_auto_pong=False, max_frame_size=session.frame_size_max,
            max_redirects=0, read_buffer_init_size=READ_BUFFER_SIZE, logger_name=_quiet, socket_factory=lambda parsed: _socket(parsed, source),
            **(dict(ssl_handshake_timeout=TLS_TIMEOUT_S, ssl_incoming_bio_size=TLS_BUFFER_SIZE) if url.startswith("wss:") else {})),
            CONNECT_TIMEOUT_S)
        if session.transport is None:
            raise Refused(0, f"{url} closed the connection before its answer")
    except picows.WSInvalidStatusError as error:
        response = error.response
        retry = response.headers.get("Retry-After", "") if response is not None else ""
        raise Refused(int(response.status) if response is not None else 0, str(error.args[0]),
                      float(retry) if retry.isdigit() else 0.0) from error
    except asyncio.TimeoutError as error:
        raise Refused(0, f"{url} did not answer within {CONNECT_TIMEOUT_S:g} s") from error
    except (OSError, ssl.SSLError, ssl.CertificateError, picows.WSError) as error:
        raise Refused(0, f"{type(error).__name__}: {error}") from error


# -- the worker's own figures in the counters file --------------------------------------------------------------

cdef note(Publisher publisher, int code, uint32_t session, str text):
    cdef bytes data = text.encode("ascii", "replace")
    fh_error_add(publisher.counters, clock_ns(CLOCK_REALTIME), code, session, data, len(data))


cdef class Figures:
    """What the worker writes beside the publisher: session rows, counters, distinct errors, loop times."""
    cdef Publisher publisher
    cdef dict index

    def __init__(self, Publisher publisher not None):
        self.publisher = publisher
        self.index = {fh_counter_name(i).decode(): i for i in range(FH_COUNTER_COUNT)}

    def add(self, name, uint64_t count):
        self.publisher.counters.counter[<int>self.index[name]] += count

    def has(self, name):
        return name in self.index

    def error(self, int code, uint32_t session, str text):
        note(self.publisher, code, session, text)

    def loop_turn(self, uint64_t ns):
        """The time between two heartbeats above what was asked for: how long the loop kept everybody waiting."""
        fh_histogram_add(&self.publisher.counters.stage[<int>FH_STAGE_LOOP], ns)
        if ns > self.publisher.counters.counter[<int>FH_COUNTER_loop_ns_max]:
            self.publisher.counters.counter[<int>FH_COUNTER_loop_ns_max] = ns

    def first_data(self, uint64_t ns):
        fh_histogram_add(&self.publisher.counters.stage[<int>FH_STAGE_FIRST_DATA], ns)

    def row_open(self, uint32_t index, uint32_t id, venue, endpoint, address):
        """A session row begins its life; rows are cleared, so that nothing of a former owner shows."""
        cdef fh_session_row *row = &self.publisher.counters.session[index]
        memset(row, 0, sizeof(fh_session_row))
        row.id = id
        row.lag_min_ns = INT64_MAX
        put_text(row.venue, 24, venue)
        put_text(row.endpoint, 24, endpoint)
        put_text(row.address, 48, address)

    def row_state(self, uint32_t index, uint32_t state, uint64_t opened_ns, uint64_t reconnects, uint32_t streams,
                  uint32_t streams_live, uint64_t gaps, uint64_t close_code):
        cdef fh_session_row *row = &self.publisher.counters.session[index]
        row.state, row.opened_ns, row.reconnects = state, opened_ns, reconnects
        row.streams, row.streams_live, row.gaps, row.close_code_last = streams, streams_live, gaps, close_code

    def session_figures(self, uint32_t index):
        """(frames, bytes, events with a lag, lowest lag in ns since the last call or None)."""
        cdef fh_session_row *row = &self.publisher.counters.session[index]
        cdef int64_t least = row.lag_min_ns
        row.lag_min_ns = INT64_MAX
        return row.frames, row.bytes, row.lag_count, None if least == INT64_MAX else least

    def line_figures(self, uint32_t index):
        """What a session brought of streams that have another line, as control.SessionState names it."""
        cdef fh_session_row *row = &self.publisher.counters.session[index]
        return {"first": row.first, "second": row.second, "behind_ns": row.behind_ns, "behind_count": row.behind_count}


cdef put_text(char *field, size_t size, text):
    cdef bytes data = text.encode("ascii", "replace")[:size - 1]
    memcpy(field, <const char *>data, len(data))
