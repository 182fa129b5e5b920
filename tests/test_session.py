"""Sessions over loopback sockets: what malformed peers get, what good ones see published."""
import asyncio
import os
import socket
import ssl
import struct

import pytest
import trustme
import uvloop
from hypothesis import given, settings, strategies as st

from feedhandler import venues
from feedhandler.worker.publisher import Publisher
from feedhandler.worker.session import Figures, Refused, Session, connect, tls_context, utf8_valid
from wssupport import (BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, close, frame, read_close, read_frame, serving, trade)

FRAME_SIZE_MAX = 1 << 20


class Owner:
    """What a session reports, as it comes."""

    def __init__(self):
        self.events = []
        self.pings = []
        self.controls = []
        self.errors = []
        self.ended = asyncio.get_running_loop().create_future()
        self.up = asyncio.get_running_loop().create_future()

    def opened(self, session):
        self.up.set_result(session)

    def control(self, session, payload):
        self.controls.append(payload)

    def ping(self, session, payload):
        self.pings.append(payload)
        session.send_pong(payload)

    def notices(self):
        pass

    def failed(self, session, error):
        self.errors.append(error)

    def closed(self, session, code, reason):
        self.ended.set_result((code, reason))


@pytest.fixture
def publisher(tmp_path):
    fd = os.open(tmp_path, os.O_RDONLY)
    made = Publisher(fd, 0, 4096, 64, 100, 1)
    yield made
    made.close()
    os.close(fd)


@pytest.fixture(scope="module")
def venue():
    made = venues.load("deribit", 64)
    made.add_instrument(1, "BTC-PERPETUAL", -1, 0)
    return made


def run(coroutine):
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(asyncio.wait_for(coroutine, 20))


async def meet(publisher, venue, script, *, strict=True, during=None, url_tls=None, ca_file=None, index=3):
    """Connect to a server that runs script; the owner once it is over."""
    owner = Owner()
    session = Session(publisher, venue, owner, index, FRAME_SIZE_MAX, strict)
    async with serving(script, url_tls) as url:
        await connect(session, url, tls_context(ca_file) if url.startswith("wss") else None)
        if during:
            await during(session)
        await asyncio.wait_for(owner.ended, 10)
    return owner


def answer_to(publisher, venue, *frames, strict=True, before=0):
    """(close code the client sent, owner) when the server sends these frames one by one."""
    async def go():
        codes = []

        async def script(reader, writer):
            for part in frames:
                writer.write(part)
                await writer.drain()
            codes.append(await read_close(reader))
        owner = await meet(publisher, venue, script, strict=strict)
        return (codes or [None])[0], owner
    return run(go())


def test_trades_are_published_and_counted(publisher, venue):
    code, owner = answer_to(publisher, venue, *[frame(TEXT, trade(n)) for n in range(1, 51)], close(1001, b"bye"))
    assert code == 1001 and owner.ended.result() == (1001, "bye")
    assert publisher.counter("frames") == 50 and publisher.counter("events") == 50
    assert publisher.counter("frames_protocol_error") == 0 and not owner.errors


def test_a_session_leaves_from_the_local_address_it_is_given(publisher, venue):
    async def go():
        seen = []

        async def script(reader, writer):
            seen.append(writer.get_extra_info("peername")[0])
            writer.write(close(1000))
        async with serving(script) as url:
            for source in ("", "127.0.0.1", "127.0.0.2"):
                owner = Owner()
                await connect(Session(publisher, venue, owner, 3, FRAME_SIZE_MAX, True), url, None, source)
                await owner.ended
            for source, words in (("192.0.2.1", "OSError"), ("::1", "no address that ::1 can reach|not supported")):
                with pytest.raises(Refused, match=words):
                    await connect(Session(publisher, venue, Owner(), 3, FRAME_SIZE_MAX, True), url, None, source)
        return seen
    assert run(go()) == ["127.0.0.1", "127.0.0.1", "127.0.0.2"]


def test_frames_of_one_segment_are_all_published(publisher, venue):
    code, owner = answer_to(publisher, venue, b"".join(frame(TEXT, trade(n)) for n in range(1, 501)) + close(1000))
    assert publisher.counter("events") == 500 and code == 1000


@pytest.mark.parametrize("name, frames, code, counter", [
    ("RSV bit 1", [frame(TEXT, trade(1), rsv=4)], 1002, "frames_protocol_error"),
    ("RSV bit 3", [frame(TEXT, trade(1), rsv=1)], 1002, "frames_protocol_error"),
    ("RSV on a ping", [frame(PING, b"", rsv=2)], 1002, "frames_protocol_error"),
    ("RSV on a close", [frame(CLOSE, struct.pack("!H", 1000), rsv=7)], 1002, "frames_protocol_error"),
    ("masked", [frame(TEXT, trade(1), mask=True)], 1002, "frames_protocol_error"),
    ("63-bit length", [frame(TEXT, b"x", length=1 << 63)], 1002, "frames_protocol_error"),
    ("a length of exabytes", [frame(TEXT, b"x", length=(1 << 63) - 1)], 1009, "frames_oversize"),
    ("one byte too large", [frame(TEXT, b"x", length=FRAME_SIZE_MAX + 1)], 1009, "frames_oversize"),
    ("reserved opcode", [frame(3, b"")], 1002, "frames_protocol_error"),
    ("stray continuation", [frame(CONTINUATION, b"x")], 1002, "frames_protocol_error"),
    ("text within a message", [frame(TEXT, b"{", fin=False), frame(TEXT, b"}")], 1002, "frames_protocol_error"),
    ("binary within a message", [frame(TEXT, b"{", fin=False), frame(BINARY, b"}")], 1002, "frames_protocol_error"),
    ("a ping in fragments", [frame(PING, b"", fin=False)], 1002, "frames_protocol_error"),
    ("a ping of 126 bytes", [frame(PING, b"x" * 126)], 1002, "frames_protocol_error"),
    ("not UTF-8", [frame(TEXT, b"\xff{}")], 1007, "frames_utf8_error"),
    ("cut inside a character", [frame(TEXT, "{\u20ac".encode()[:-1])], 1007, "frames_utf8_error"),
    ("a fragment not UTF-8", [frame(TEXT, b"{", fin=False), frame(CONTINUATION, b"\xc0\x80", fin=False)], 1007, "frames_utf8_error"),
    ("last fragment cut", [frame(TEXT, b"{", fin=False), frame(CONTINUATION, b"\xe2\x82")], 1007, "frames_utf8_error"),
    ("fragment bomb", [frame(TEXT, b"[", fin=False)] + [frame(CONTINUATION, b" " * 65536, fin=False)] * 17, 1009, "frames_oversize"),
    ("close code 0", [close(0)], 1002, "frames_protocol_error"),
    ("close code 999", [close(999)], 1002, "frames_protocol_error"),
    ("close code 1005", [close(1005)], 1002, "frames_protocol_error"),
    ("close code 1006", [close(1006)], 1002, "frames_protocol_error"),
    ("close code 1015", [close(1015)], 1002, "frames_protocol_error"),
    ("close of one byte", [frame(CLOSE, b"\x03")], 1002, "frames_protocol_error"),
    ("close reason not UTF-8", [close(1000, b"\xff")], 1007, "frames_utf8_error"),
], ids=lambda value: value if isinstance(value, str) else "")
def test_a_peer_that_breaks_the_protocol_is_told_the_code_and_counted(publisher, venue, name, frames, code, counter):
    sent, owner = answer_to(publisher, venue, frame(TEXT, trade(1)), *frames)
    assert sent == code
    assert publisher.counter(counter) == 1 and owner.ended.result()[0] == code
    assert publisher.counter("events") == 1, "what came before counts"


@pytest.mark.parametrize("sent, answered, reported", [
    (close(1000), 1000, 1000), (close(1008, b"Too many requests"), 1008, 1008), (close(3000), 3000, 3000), (close(4004), 4004, 4004),
    (frame(CLOSE), 1000, 1005)])
def test_a_close_is_answered_with_its_code_and_never_with_zero(publisher, venue, sent, answered, reported):
    code, owner = answer_to(publisher, venue, sent)
    assert code == answered and owner.ended.result()[0] == reported
    assert publisher.counter("frames_protocol_error") == 0


def test_a_connection_that_just_ends_is_1006(publisher, venue):
    async def script(reader, writer):
        writer.write(frame(TEXT, trade(1)))
        await writer.drain()
        writer.transport.abort()
    assert run(meet(publisher, venue, script)).ended.result() == (1006, "")


def test_the_largest_message_is_accepted_whole_and_in_fragments(publisher, venue):
    room = FRAME_SIZE_MAX - len(trade(1))
    for_whole, for_parts = trade(1, pad=room), trade(2, pad=room)
    assert len(for_parts) == FRAME_SIZE_MAX
    parts = [frame(TEXT, for_parts[:65536], fin=False)]
    parts += [frame(CONTINUATION, for_parts[at:at + 65536], fin=at + 65536 >= len(for_parts)) for at in range(65536, len(for_parts), 65536)]
    code, owner = answer_to(publisher, venue, frame(TEXT, for_whole), *parts, close(1000))
    assert code == 1000 and publisher.counter("events") == 2


def test_a_message_split_at_every_byte_is_one_message_and_pings_may_lie_between(publisher, venue):
    text = trade(1)
    frames = [frame(TEXT, text[:1], fin=False)]
    for i in range(1, len(text)):
        frames += [frame(PING, b"%d" % i)] if i % 50 == 0 else []
        frames += [frame(CONTINUATION, text[i:i + 1], fin=i == len(text) - 1)]
    code, owner = answer_to(publisher, venue, b"".join(frames), close(1000))
    assert code == 1000 and publisher.counter("events") == 1 and owner.pings == [b"%d" % i for i in range(50, len(text), 50)]


def test_a_frame_cut_at_every_byte_of_the_stream_is_published_once(publisher, venue):
    data = frame(TEXT, trade(7))
    async def script(reader, writer):
        for i in range(len(data)):
            writer.write(data[i:i + 1])
            await writer.drain()
            if i < 16:
                await asyncio.sleep(0)
        writer.write(close(1000))
        await read_close(reader)
    run(meet(publisher, venue, script))
    assert publisher.counter("events") == 1


def test_bad_utf8_passes_to_the_decoder_when_not_strict(publisher, venue):
    code, owner = answer_to(publisher, venue, frame(TEXT, b"\xff{}"), close(1000), strict=False)
    assert code == 1000 and publisher.counter("frames_malformed") + publisher.counter("frames_unknown") == 1


def test_pongs_echo_their_ping_and_control_frames_reach_python(publisher, venue):
    answers = []
    async def script(reader, writer):
        writer.write(frame(PING, b"payload") + frame(TEXT, b'{"jsonrpc":"2.0","id":5,"result":[]}'))
        answers.append(await read_frame(reader))
        writer.write(close(1000))
        await read_close(reader)
    owner = run(meet(publisher, venue, script))
    assert answers == [(PONG, b"payload")] and owner.controls == [b'{"jsonrpc":"2.0","id":5,"result":[]}']


def test_nothing_counts_after_a_failure(publisher, venue):
    code, owner = answer_to(publisher, venue, frame(TEXT, trade(1)) + frame(CONTINUATION, b"x") + frame(TEXT, trade(2)) * 20)
    assert code == 1002 and publisher.counter("events") == 1


def test_an_exception_of_ours_closes_with_1011_and_is_noted(publisher, venue):
    async def script(reader, writer):
        writer.write(frame(PING, b"boom"))
        codes.append(await read_close(reader))
    codes = []

    async def go():
        owner = Owner()
        def ping(session, payload):
            raise RuntimeError("no pong today")
        owner.ping = ping
        session = Session(publisher, venue, owner, 1, FRAME_SIZE_MAX, True)
        async with serving(script) as url:
            await connect(session, url, None)
            assert (await owner.ended)[0] == 1011
        return owner
    owner = run(go())
    assert codes == [1011] and str(owner.errors[0]) == "no pong today"


def test_our_close_waits_for_the_answer_and_abort_does_not(publisher, venue):
    async def script(reader, writer):
        code = await read_close(reader)
        writer.write(close(code))
        await reader.read()
    async def closing(session):
        session.close(1000, "done")
    assert run(meet(publisher, venue, script, during=closing)).ended.result()[0] == 1000

    async def mute(reader, writer):
        await asyncio.sleep(30)
    async def aborting(session):
        session.abort()
    assert run(meet(publisher, venue, mute, during=aborting)).ended.result()[0] == 1006


def test_every_socket_has_keepalive_1_1_2_and_no_delay(publisher, venue):
    seen = {}
    async def script(reader, writer):
        await read_close(reader)
    async def look(session):
        for name in ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT", "TCP_USER_TIMEOUT", "TCP_NODELAY"):
            seen[name] = session.socket_option(socket.IPPROTO_TCP, getattr(socket, name))
        seen["SO_KEEPALIVE"] = session.socket_option(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        session.abort()
    run(meet(publisher, venue, script, during=look))
    assert seen == {"TCP_KEEPIDLE": 1, "TCP_KEEPINTVL": 1, "TCP_KEEPCNT": 2, "TCP_USER_TIMEOUT": 2200, "TCP_NODELAY": 1, "SO_KEEPALIVE": 1}


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    made = trustme.CA()
    path = tmp_path_factory.mktemp("ca") / "ca.pem"
    made.cert_pem.write_to_path(path)
    return made, str(path)


def server_context(authority, name):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(name).configure_cert(context)
    return context


def test_tls_with_a_private_authority_carries_trades(publisher, venue, authority):
    made, ca_file = authority
    async def script(reader, writer):
        writer.write(frame(TEXT, trade(1)) + frame(TEXT, trade(2, pad=100000)) + close(1000))
        await read_close(reader)
    run(meet(publisher, venue, script, url_tls=server_context(made, "localhost"), ca_file=ca_file))
    assert publisher.counter("events") == 2


@pytest.mark.parametrize("name, trusted, says", [("localhost", False, "local issuer"),
                                                 ("other.example", True, "hostname mismatch")])
def test_an_unverified_server_is_never_talked_to(publisher, venue, authority, name, trusted, says):
    made, ca_file = authority
    async def script(reader, writer):
        await read_close(reader)
    with pytest.raises(Refused, match=says):
        run(meet(publisher, venue, script, url_tls=server_context(made, name), ca_file=ca_file if trusted else ""))


def test_a_refusal_carries_its_status_and_what_the_venue_asked_to_wait(publisher, venue):
    async def script(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 429 Too Many Requests\r\nRetry-After: 17\r\nContent-Length: 0\r\n\r\n")
        await writer.drain()
    async def go(**options):
        session = Session(publisher, venue, Owner(), 1, FRAME_SIZE_MAX, True)
        async with serving(script, upgrades=False) as url:
            await connect(session, url, None)
    with pytest.raises(Refused) as refused:
        run(go())
    assert (refused.value.code, refused.value.retry_s) == (429, 17.0)


def test_nobody_listening_and_a_server_that_hangs_up_are_refusals(publisher, venue):
    async def nobody():
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            await connect(Session(publisher, venue, Owner(), 1, FRAME_SIZE_MAX, True), f"ws://127.0.0.1:{taken.getsockname()[1]}/", None)
    with pytest.raises(Refused, match="Refused"):
        run(nobody())

    async def script(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
    async def hang_up():
        async with serving(script, upgrades=False) as url:
            await connect(Session(publisher, venue, Owner(), 1, FRAME_SIZE_MAX, True), url, None)
    with pytest.raises(Refused, match="closed the connection"):
        run(hang_up())


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.binary(max_size=40), st.text(max_size=20).map(str.encode)), st.integers(0, 40), st.integers(0, 40))
def test_utf8_is_judged_as_python_judges_it_wherever_it_is_split(data, first, second):
    try:
        data.decode()
        valid = True
    except UnicodeDecodeError:
        valid = False
    first, second = sorted((first, second))
    assert utf8_valid(data[:first], data[first:second], data[second:]) == valid


def test_session_rows_and_errors_are_written_where_stats_reads_them(publisher, tmp_path):
    figures = Figures(publisher)
    figures.row_open(5, 42, "deribit", "v2", "wss://www.deribit.com/ws/api/v2")
    figures.row_state(5, 2, 1, 3, 10, 9, 1, 1006)
    figures.error(1002, 5, "a\nb")
    data = (tmp_path / "worker-0.counters").read_bytes()
    assert b"wss://www.deribit.com/ws/api/v2" in data and b"a?b" in data
