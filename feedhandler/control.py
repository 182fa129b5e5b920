"""Messages between the supervisor, its workers and the command line, and their codec.

One message is a 4-byte little-endian size and that many bytes of MessagePack. Workers listen on
`worker-<n>.sock`, the supervisor on `supervisor.sock`, both in the instance's directory. The supervisor
connects to workers; a worker without a supervisor goes on as it is.
"""
import msgspec

FRAME_SIZE_MAX = 16 << 20  # the largest REST snapshot we forward is about 1 MB; 16 MiB is the message cap


class Message(msgspec.Struct, tag_field="type", tag=True):
    """Base of all messages."""


# -- what a worker is to do (supervisor → worker) -----------------------------------------------------------

class InstrumentRow(msgspec.Struct):
    """An instrument this worker may meet: what Venue.add_instrument() and the publisher need."""
    id: int
    venue: str
    symbol: str
    price_exponent: int
    size_exponent: int


class StreamPlan(msgspec.Struct):
    """One stream to hold. id is unique in the instance and stable over its life."""
    id: int
    instrument: int
    endpoint: str
    wire: str
    symbol: str
    channel: str
    depth: int = 0
    snapshot: str = ""
    first_data_s: float = 30.0


class ConnectionPlan(msgspec.Struct):
    """One WebSocket connection to hold open, and the streams on it."""
    id: int
    venue: str
    endpoint: str
    url: str
    streams: list[StreamPlan]
    ca_file: str = ""        # "": the system's trust store
    profile: dict = {}       # capacity profile with overrides applied (liveness, client_msg, sub, lifetime)


class Assign(Message):
    """The whole shard, as it should be. The worker makes the difference happen, keeping what did not change."""
    generation: int
    instruments: list[InstrumentRow]
    connections: list[ConnectionPlan]


class Permit(Message):
    """Connection attempts this worker may make on an endpoint, before valid_until_ns (CLOCK_MONOTONIC)."""
    venue: str
    endpoint: str
    count: int
    valid_until_ns: int


class Snapshot(Message):
    """The answer to WantSnapshot. status is the HTTP status, 0 if no answer came; retry_s: ask again not before."""
    stream: int
    status: int
    body: bytes = b""
    reason: str = ""
    retry_s: float = 0.0


class Stop(Message):
    """Unsubscribe, close sessions with 1000, mark the ring CLOSED, exit."""
    drain_s: float = 1.0


class Query(Message):
    """Ask a worker for its WorkerState."""


# -- what a worker says (worker → supervisor) ----------------------------------------------------------------

class Hello(Message):
    """First message on a new connection, from the worker."""
    worker: int
    pid: int
    pid_start: int
    epoch: int
    generation: int          # of the Assign it follows; 0: none yet
    name: str
    version: str


class WantPermit(Message):
    venue: str
    endpoint: str
    count: int


class WantSnapshot(Message):
    """A book needs a REST snapshot. Asked again only after a Snapshot answered."""
    stream: int
    instrument: int
    reason: str


class StreamState(msgspec.Struct):
    """state: PENDING, SUBSCRIBING, ACKED, SYNCING, LIVE, GAP, STALE, REJECTED, DOWN."""
    id: int
    state: str
    reason: str = ""
    since_ns: int = 0        # CLOCK_REALTIME
    last_ns: int = 0         # receive time of the last message
    messages: int = 0
    gaps: int = 0
    gap_ns: int = 0          # of the last gap, CLOCK_REALTIME; 0: none so far, or it was told of the connection only
    gap_reason: str = ""


class SessionState(msgspec.Struct):
    """state: IDLE, CONNECTING, UP, BACKOFF, CLOSED."""
    id: int
    session: int
    state: str
    reason: str = ""
    opened_ns: int = 0
    reconnects: int = 0
    close_code: int = 0
    streams: int = 0
    streams_live: int = 0


class States(Message):
    """What changed since the last States (all of it in the answer to Query)."""
    worker: int
    streams: list[StreamState]
    sessions: list[SessionState]
    full: bool = False


class ExponentRaised(Message):
    """An instrument's exponents in the ring have changed; the supervisor updates `instruments`."""
    instrument: int
    price_exponent: int
    size_exponent: int


class Punished(Message):
    """The venue refused or closed for breaking a limit: 429, 418, 1008, …"""
    venue: str
    endpoint: str
    code: int
    reason: str
    retry_s: float = 0.0


class Stopped(Message):
    worker: int


# -- command line ↔ supervisor -------------------------------------------------------------------------------

class Request(Message):
    """verb: status, subs, conns, stop, …; arguments are the verb's own."""
    verb: str
    arguments: dict = {}


class Answer(Message):
    """ok False: error says what, where and what to do."""
    ok: bool
    result: object = None
    error: str = ""


TO_WORKER = Assign | Permit | Snapshot | Stop | Query
FROM_WORKER = Hello | WantPermit | WantSnapshot | States | ExponentRaised | Punished | Stopped

_encoder = msgspec.msgpack.Encoder()


def encode(message):
    """One framed message, as bytes."""
    body = _encoder.encode(message)
    if len(body) > FRAME_SIZE_MAX:
        raise ValueError(f"a control message of {len(body)} bytes is above the maximum of {FRAME_SIZE_MAX}")
    return len(body).to_bytes(4, "little") + body


class Decoder:
    """Bytes in, messages out. feed() answers a list; ValueError on a frame that is too large or no message."""

    def __init__(self, kind):
        self._decoder = msgspec.msgpack.Decoder(kind)
        self._buffer = bytearray()

    def feed(self, data):
        self._buffer += data
        messages = []
        while len(self._buffer) >= 4:
            size = int.from_bytes(self._buffer[:4], "little")
            if size > FRAME_SIZE_MAX:
                raise ValueError(f"a control frame claims {size} bytes, the maximum is {FRAME_SIZE_MAX}")
            if len(self._buffer) < 4 + size:
                break
            messages.append(self._decoder.decode(self._buffer[4:4 + size]))
            del self._buffer[:4 + size]
        return messages
