"""A WebSocket server of raw bytes on loopback, to say what no library would, and a deribit feed to say right things."""
import asyncio
import base64
import contextlib
import hashlib
import json
import struct

TEXT, BINARY, CONTINUATION, CLOSE, PING, PONG = 1, 2, 0, 8, 9, 10


def frame(opcode, payload=b"", fin=True, rsv=0, mask=False, length=None):
    """One server frame; length: claim this payload length in the 64-bit form."""
    head = bytes([(0x80 if fin else 0) | rsv << 4 | opcode])
    size, bit = len(payload), 0x80 if mask else 0
    if length is not None:
        head += bytes([bit | 127]) + struct.pack("!Q", length)
    elif size < 126:
        head += bytes([bit | size])
    elif size < 65536:
        head += bytes([bit | 126]) + struct.pack("!H", size)
    else:
        head += bytes([bit | 127]) + struct.pack("!Q", size)
    return head + (b"\0\0\0\0" if mask else b"") + payload


def close(code, reason=b""):
    return frame(CLOSE, struct.pack("!H", code) + reason)


async def read_frame(reader):
    """(opcode, payload) of the client's next frame."""
    first, second = await reader.readexactly(2)
    size = second & 0x7F
    if size == 126:
        size, = struct.unpack("!H", await reader.readexactly(2))
    elif size == 127:
        size, = struct.unpack("!Q", await reader.readexactly(8))
    assert second & 0x80, "a client masks"
    mask = await reader.readexactly(4)
    payload = await reader.readexactly(size)
    return first & 0x0F, bytes(byte ^ mask[i & 3] for i, byte in enumerate(payload))


async def read_close(reader):
    """The code of the client's close frame, whatever comes before it; None if it just hangs up."""
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            opcode, payload = await read_frame(reader)
            if opcode == CLOSE:
                return struct.unpack("!H", payload[:2])[0] if payload else 1005
    return None


async def upgrade(reader, writer):
    request = await reader.readuntil(b"\r\n\r\n")
    key = next(line.split(b":")[1].strip() for line in request.split(b"\r\n") if line.lower().startswith(b"sec-websocket-key"))
    accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
    writer.write(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                 b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n")


@contextlib.asynccontextmanager
async def serving(script, tls=None, upgrades=True):
    """A server that runs script(reader, writer) for each connection; yields its URL."""
    tasks = set()

    async def serve(reader, writer):
        tasks.add(asyncio.current_task())
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            if upgrades:
                await upgrade(reader, writer)
            await script(reader, writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    try:
        yield f"ws{'s' if tls else ''}://{'localhost' if tls else '127.0.0.1'}:{port}/ws"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def trade(sequence, symbol="BTC-PERPETUAL", pad=0):
    """A deribit trade message."""
    data = {"trade_seq": sequence, "trade_id": str(sequence), "timestamp": 1700000000000 + sequence, "price": 100.5,
            "instrument_name": symbol, "direction": "buy", "amount": 10.0, "note": "x" * pad}
    return notification(f"trades.{symbol}.100ms", [data])


def book(change, previous=None, symbol="BTC-PERPETUAL", bids=(("new", 100.0, 5.0),), asks=(("new", 101.0, 7.0),)):
    """A deribit book message: a snapshot without previous."""
    data = {"type": "snapshot" if previous is None else "change", "timestamp": 1700000000000 + change,
            "instrument_name": symbol, "change_id": change, "bids": [list(level) for level in bids],
            "asks": [list(level) for level in asks]}
    if previous is not None:
        data["prev_change_id"] = previous
    return notification(f"book.{symbol}.100ms", data)


def notification(channel, data):
    return json.dumps({"jsonrpc": "2.0", "method": "subscription", "params": {"channel": channel, "data": data}}).encode()
