"""Faults on request, each recorded as it was injected, so that a test knows exactly what a receiver missed.

Four families: on the next frames of a stream, on the next subscribe, on connections, on a whole venue.
"""
import dataclasses
import itertools
import re
import struct

from feedhandler.simulate.throttle import Throttle

FRAME_KINDS = ("drop", "duplicate", "reorder", "corrupt", "malformed", "oversize", "fragment", "masked", "bad_utf8", "rsv")
SUBSCRIBE_KINDS = ("silent", "ack_lost", "reject")
CONNECTION_KINDS = ("stall", "half_open", "slow", "throttle", "disconnect", "reset", "notice")
VENUE_KINDS = ("refuse", "rest_error")
KINDS = FRAME_KINDS + SUBSCRIBE_KINDS + CONNECTION_KINDS + VENUE_KINDS

RECORDS_MAX = 100_000
OVERSIZE_DEFAULT = 64 << 20     # announced, not sent: above any sane cap
CLOSE_CODE_DEFAULT = 1001
SLOW_BYTES_PER_S = 2_000
DIGIT = re.compile(rb'[0-9](?=[0-9]*["\],])')
TEXT, FIN = 0x1, 0x80


class FaultError(ValueError):
    """A fault that cannot be injected; the text says why."""


@dataclasses.dataclass(slots=True, eq=False)
class Fault:
    kind: str
    venue: str = ""             # "" is every one
    symbol: str = ""
    channel: str = ""
    count: int = 1              # deliveries, subscribes or connections it is applied to
    skip: int = 0               # matching deliveries let through first
    seconds: float = 0.0        # how long (stall, slow, throttle, refuse, rest_error); 0: until cleared
    code: int = CLOSE_CODE_DEFAULT
    size: int = OVERSIZE_DEFAULT
    bytes_per_s: int = 0        # slow, throttle: what a connection is sent at most; 0: slow has its own, throttle any number
    messages_per_s: float = 0   # throttle
    drop_after_s: float = 0     # throttle: close the connection as a slow one when it is so late; 0: never
    identity: int = 0
    injected: int = 0

    def matches(self, stream):
        instrument = stream.instrument
        return (self.venue in ("", instrument.venue if instrument else "") and self.symbol in ("", instrument.symbol if instrument else "")
                and self.channel in ("", stream.channel, stream.wire))


class Faults:
    """The faults asked for, and what was injected. Used by one simulator."""

    def __init__(self, simulator):
        self.simulator = simulator
        self.identities = itertools.count(1)
        self.waiting = []           # frame and subscribe faults not yet used up
        self.held = {}              # (connection, wire) -> frame parts held back by reorder
        self.records = []
        self.refused_until = {}     # venue -> time
        self.rest_error_until = {}  # venue -> (time, status)
        self.records_dropped = 0

    def add(self, kind, **fields):
        """Ask for a fault. Returns it; raises FaultError when the request makes no sense."""
        if kind not in KINDS:
            raise FaultError(f"fault {kind!r} is not known; use one of {', '.join(KINDS)}")
        unknown = set(fields) - {field.name for field in dataclasses.fields(Fault)}
        if unknown:
            raise FaultError(f"fault {kind}: {', '.join(sorted(unknown))} is not a field; use venue, symbol, channel, count, "
                             f"skip, seconds, code, size, bytes_per_s, messages_per_s or drop_after_s")
        if fields.get("venue") and fields["venue"] not in self.simulator.sides:
            raise FaultError(f"fault {kind}: venue {fields['venue']!r} is not simulated; running are {', '.join(self.simulator.sides)}")
        fault = Fault(kind, identity=next(self.identities), **fields)
        if kind == "throttle" and not (fault.bytes_per_s or fault.messages_per_s):
            raise FaultError("fault throttle: say how much still comes, with messages_per_s or bytes_per_s")
        if kind in FRAME_KINDS:
            self.waiting.append(fault)
            for stream in self.simulator.streams():
                self.arm(stream)
        elif kind in SUBSCRIBE_KINDS:
            self.waiting.append(fault)
        elif kind in CONNECTION_KINDS:
            self.on_connections(fault)
        else:
            self.on_venue(fault)
        return fault

    def clear(self):
        """Forget all faults that are still waiting or lasting."""
        self.waiting.clear()
        self.refused_until.clear()
        self.rest_error_until.clear()
        for stream in self.simulator.streams():
            stream.faults.clear()
        for connection in self.simulator.connections:
            connection.stalled_until = connection.half_open = 0
            if connection.throttle:
                connection.throttle.until = 0       # what waits is sent, and the venue's own rate holds again

    def record(self, fault, **what):
        fault.injected += 1
        if len(self.records) >= RECORDS_MAX:
            self.records_dropped += 1
            return
        self.records.append({"id": fault.identity, "kind": fault.kind, "at": self.simulator.clock(), **what})

    # -- frames ----------------------------------------------------------------------------------------------
    def arm(self, stream):
        """Attach the waiting frame faults that aim at this stream."""
        stream.faults = [fault for fault in self.waiting if fault.kind in FRAME_KINDS and fault.matches(stream)]

    def deliver(self, stream, connection, payload, position):
        """The bytes that go to one connection in place of this frame."""
        key = connection, stream.wire
        late = self.held.pop(key, b"")
        fault = self.next_fault(stream)
        if fault is None:
            return framed(payload) + late
        self.record(fault, venue=connection.side.name, wire=stream.wire, symbol=stream.instrument.symbol if stream.instrument else "",
                    channel=stream.channel, position=position, connection=connection.identity,
                    sequence=stream.instrument.sequence(position + 1) if stream.instrument and stream.instrument.streams else None)
        self.simulator.oracle.disturbed(connection, stream, position, fault.kind)
        if fault.kind == "reorder":
            self.held[key] = framed(payload) + late
            return b""
        return BYTES[fault.kind](payload, fault) + late

    def next_fault(self, stream):
        for fault in stream.faults:
            if fault.skip:
                fault.skip -= 1
                continue
            fault.count -= 1
            if fault.count <= 0:
                self.waiting.remove(fault)
                for other in self.simulator.streams():
                    if fault in other.faults:
                        other.faults = [left for left in other.faults if left is not fault]
            return fault
        return None

    # -- subscribes ------------------------------------------------------------------------------------------
    def subscribing(self, stream):
        """The subscribe fault to apply to this stream's next subscribe, or ""."""
        for fault in self.waiting if stream is not None else ():
            if fault.kind in SUBSCRIBE_KINDS and fault.matches(stream):
                fault.count -= 1
                if fault.count <= 0:
                    self.waiting.remove(fault)
                self.record(fault, wire=stream.wire)
                return fault.kind
        return ""

    # -- connections and venues ------------------------------------------------------------------------------
    def on_connections(self, fault):
        """Applied at once to the connections that carry a matching stream (or belong to the venue)."""
        now = self.simulator.clock()
        until = now + fault.seconds if fault.seconds else float("inf")
        for connection in list(self.simulator.connections):
            if fault.injected >= fault.count or connection.closing or not self.aims_at(fault, connection):
                continue
            self.record(fault, venue=connection.side.name, connection=connection.identity)
            if fault.kind == "stall":
                connection.stalled_until = until
            elif fault.kind == "half_open":
                connection.go_dark()
            elif fault.kind == "slow":
                connection.hold_back(Throttle(now, 0, fault.bytes_per_s or SLOW_BYTES_PER_S, until))
            elif fault.kind == "throttle":
                connection.hold_back(Throttle(now, fault.messages_per_s, fault.bytes_per_s, until, fault.drop_after_s))
            elif fault.kind == "disconnect":
                connection.close(fault.code, "closed by the simulator")
            elif fault.kind == "reset":
                connection.reset()
            else:
                connection.side.shutdown_notice(connection)

    def aims_at(self, fault, connection):
        if fault.symbol or fault.channel:
            return any(fault.matches(stream) for stream in connection.streams.values())
        return fault.venue in ("", connection.side.name)

    def on_venue(self, fault):
        until = self.simulator.clock() + (fault.seconds or float("inf"))
        for name in [fault.venue] if fault.venue else list(self.simulator.sides):
            self.record(fault, venue=name)
            if fault.kind == "refuse":
                self.refused_until[name] = until
            else:
                self.rest_error_until[name] = until, fault.code if fault.code >= 400 else 503

    def document(self):
        return {"records": self.records, "records_dropped": self.records_dropped,
                "waiting": [dataclasses.asdict(fault) for fault in self.waiting]}


# -- bytes on the wire -------------------------------------------------------------------------------------------
def header(size, first=FIN | TEXT, mask=0):
    """A WebSocket frame header. A server's frames carry no mask, unless a fault says so."""
    if size < 126:
        return bytes((first, mask | size))
    if size < 65_536:
        return struct.pack("!BBH", first, mask | 126, size)
    return struct.pack("!BBQ", first, mask | 127, size)


def framed(payload):
    return header(len(payload)) + payload


def corrupted(payload):
    """One digit of a book level (else of the last number) becomes another digit."""
    for marker in (b'"b":[[', b'"a":[[', b'"asks":[[', b'"bids":[[', b'"bids":[{', b'"asks":[{', b'"data":'):
        at = payload.find(marker)
        match = DIGIT.search(payload, at) if at >= 0 else None
        if match:
            digit = payload[match.start()]
            return payload[:match.start()] + bytes((48 + (digit - 48 + 1) % 9 + 1 if digit != 57 else 49,)) + payload[match.start() + 1:]
    return payload


def fragmented(payload, fault):
    """Three fragments with a ping between them: legal, and often wrong in clients."""
    third = max(1, len(payload) // 3)
    parts = payload[:third], payload[third:2 * third], payload[2 * third:]
    return (header(len(parts[0]), TEXT) + parts[0] + header(0, FIN | 0x9) + header(len(parts[1]), 0) + parts[1]
            + header(len(parts[2]), FIN) + parts[2])


BYTES = {
    "drop": lambda payload, fault: b"",
    "duplicate": lambda payload, fault: framed(payload) * 2,
    "corrupt": lambda payload, fault: framed(corrupted(payload)),
    "malformed": lambda payload, fault: framed(payload[:len(payload) // 2]),
    "oversize": lambda payload, fault: header(fault.size) + payload,
    "fragment": fragmented,
    "masked": lambda payload, fault: header(len(payload), mask=0x80) + b"\0\0\0\0" + payload,
    "bad_utf8": lambda payload, fault: framed(payload[:-1] + b"\xff" + payload[-1:]),
    "rsv": lambda payload, fault: header(len(payload), FIN | TEXT | 0x40) + payload,
}
