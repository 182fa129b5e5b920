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
    role: str = ""           # "": published here; "incoming": the first half of a move; "standby": that half kept open, with a book of its own
    backed: bool = False     # another worker is this instrument's standby


class ConnectionPlan(msgspec.Struct):
    """One WebSocket connection to hold open, and the streams on it."""
    id: int
    venue: str
    endpoint: str
    url: str
    streams: list[StreamPlan]
    ca_file: str = ""        # "": the system's trust store
    profile: dict = {}       # capacity profile with overrides applied (liveness, client_msg, sub, lifetime)
    source: str = ""         # local address to connect from; "": the system's choice

    def with_streams(self, streams):
        """The same connection with these."""
        return msgspec.structs.replace(self, streams=streams)


class Assign(Message):
    """The whole shard, as it should be. The worker makes the difference happen, keeping what did not change.

    A stream that leaves one connection for another of the same Assign lingers on the first until the second has met it."""
    generation: int
    instruments: list[InstrumentRow]
    connections: list[ConnectionPlan]


class Permit(Message):
    """What this worker may do on an endpoint before valid_until_ns (CLOCK_MONOTONIC). kind: "connect", attempts;
    "operation", subscribe and unsubscribe messages where all connections of the address share a budget."""
    venue: str
    endpoint: str
    count: int
    valid_until_ns: int
    kind: str = "connect"


class Snapshot(Message):
    """The answer to WantSnapshot. status is the HTTP status, 0 if no answer came; retry_s: ask again not before."""
    stream: int
    status: int
    body: bytes = b""
    reason: str = ""
    retry_s: float = 0.0


class LetGo(Message):
    """Publish MOVED_OUT and hand the instrument over, once each channel is at its floor (Ready told them).
    quiet: channels the other side has seen no data of; ours must be quiet too."""
    instrument: int
    to_worker: int
    floors: dict[str, int] = {}
    quiet: list[str] = []
    deadline_s: float = 1.0


class AskReady(Message):
    """Say Ready again of an instrument held in private, as soon as it is."""
    instrument: int


class TakeOver(Message):
    """Publish an instrument held in private on from where from_worker left it. handover is of its LetGone; None: it
    is dead, and its ring says where."""
    instrument: int
    from_worker: int
    handover: dict | None = None


class Rotate(Message):
    """Close this connection and open it anew: no other could be opened beside it, so its streams have a hole."""
    connection: int
    reason: str = "planned reconnect before the venue's own cut"


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
    """kind as of the Permit that answers it, now or when there is room. again: so many wait for long, of those asked for before."""
    venue: str
    endpoint: str
    count: int
    kind: str = "connect"
    again: bool = False


class WantSnapshot(Message):
    """A book needs a REST snapshot. Asked again only after a Snapshot answered."""
    stream: int
    instrument: int
    reason: str


class Ready(Message):
    """An instrument held in private could be taken over now. floors: each channel's sequence below which nothing is held;
    quiet: channels acknowledged without data so far; book: its book is whole without a hand-over."""
    instrument: int
    floors: dict[str, int]
    quiet: list[str]
    book: bool


class LetGone(Message):
    """The answer to LetGo. handover is for TakeOver; not ok: the instrument is published here as before."""
    instrument: int
    handover: dict | None
    ok: bool
    reason: str = ""


class TakenOver(Message):
    """The answer to TakeOver. state is that of the book: LIVE, GAP, or NONE."""
    instrument: int
    ok: bool
    state: str = ""
    reason: str = ""
    after_ns: int = 0        # from the message to the records


class Moved(Message):
    """A stream that lingered lives on this connection alone. Not ok: it did not come up there in time and still lives where it was."""
    stream: int
    connection: int
    ok: bool = True
    reason: str = ""


class Closing(Message):
    """The venue announced that it will close this connection, in lead_s seconds where it says so."""
    connection: int
    reason: str
    lead_s: float = 0.0


class StreamState(msgspec.Struct):
    """state: PENDING, SUBSCRIBING, ACKED, SYNCING, LIVE, HELD (as LIVE, in private), GAP, STALE, REJECTED, DOWN."""
    id: int
    state: str
    reason: str = ""
    since_ns: int = 0        # CLOCK_REALTIME
    last_ns: int = 0         # receive time of the last message
    messages: int = 0
    gaps: int = 0
    gap_ns: int = 0          # of the last gap, CLOCK_REALTIME; 0: none so far, or it was told of the connection only
    gap_reason: str = ""
    records: int = 0         # published of it
    bursts: tuple[float, float, float] | None = None   # messages within 10 ms, 100 ms and 1 s, 99th percentile; None: not measured


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
    queue_bytes: int = 0     # unread in the kernel at the last look
    lag_ns: int = 0          # of its events above the connection's own baseline
    health: str = "OK"       # OK, QUIET, THROTTLED, BACKLOGGED: see worker/watch.py; reason says what was measured
    messages_per_s: float = 0.0   # of the last second; while THROTTLED or BACKLOGGED: when that was noticed
    first: int = 0           # events this line brought first while the stream had another, and those it brought second
    second: int = 0
    behind_ns: int = 0       # sum over behind_count of the second ones: how much later than the first
    behind_count: int = 0


class States(Message):
    """What changed since the last States (all of it in the answer to Query)."""
    worker: int
    streams: list[StreamState]
    sessions: list[SessionState]
    full: bool = False
    behind: str = ""         # why the worker does not keep up, or ""
    lingering: list[int] = []    # where full: streams that the connection which they leave serves still


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


TO_WORKER = Assign | Permit | Snapshot | LetGo | AskReady | TakeOver | Rotate | Stop | Query
FROM_WORKER = (Hello | WantPermit | WantSnapshot | States | Ready | LetGone | TakenOver | Moved | Closing | ExponentRaised | Punished |
               Stopped)

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
