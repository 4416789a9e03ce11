"""`reliable(mtu=1200, give_up=30)`: datagrams delivered once, in order, by retransmission, without flooding.

Arguments: `mtu`, the largest datagram in bytes, headers included (longer messages are cut up, and put
together again); `give_up`, seconds without any answer after which the connection ends.
Endpoints: both.  Wire: "brel/1"; integers are big-endian.  Each datagram begins with

    u8 kind (1 data, 2 acknowledgement, 3 hello)   u8 flags   u32 connection   u32 a   u32 b

Data: a its sequence number (the first is 1; modulo 2^32), b the acknowledgement, flags 1 more of this message
follows, flags 2 the end (it has a number too); the payload follows.  Acknowledgement: a free room in
datagrams, b the next number that is wanted, flags the number (at most 8) of ranges that follow, u32 first and
u32 past the last, of what has come beyond it.  Hello: what a client sends first and until it is answered; it
chooses the connection's number, at random.  What makes no sense, or is another connection's, is ignored.

Retransmission timer: RFC 6298 (0.2 to 8 s).  Congestion: slow start, congestion avoidance, and recovery
after three later acknowledgements, as NewReno (RFC 6582), by selective acknowledgements; one datagram after a
time-out.

In C (native/chunnels/reliable.c) it is the same, to the datagram and the moment: change both.
"""

from __future__ import annotations

import secrets
import struct
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final

from bertha_socket.chunnels import _reliable_native
from bertha_socket.chunnels._reliable_receiver import END as END
from bertha_socket.chunnels._reliable_receiver import MESSAGE_MAX as MESSAGE_MAX
from bertha_socket.chunnels._reliable_receiver import MORE as MORE
from bertha_socket.chunnels._reliable_receiver import RANGES_MAX as RANGES_MAX
from bertha_socket.chunnels._reliable_receiver import WINDOW as WINDOW
from bertha_socket.chunnels._reliable_receiver import Receiver
from bertha_socket.chunnels._types import (
    NATIVE_PRIORITY,
    ChunnelError,
    ChunnelType,
    Context,
    Implementation,
    Interface,
    Parameter,
    Pipe,
    between,
    octets,
    pieces,
    wires,
)

WIRE: Final = "brel/1"
HEADER: Final = struct.Struct(">BBIII")
_RANGE: Final = struct.Struct(">II")
DATA, ACK, HELLO = 1, 2, 3
#: So many that were sent later must have arrived before something counts as lost.
LATER: Final = 3
#: As MESSAGE_MAX in a carrier, of what is no message of the program's: chunks of a stream, of which older
#: ends send long ones.  They are sent in pieces of so many.
CHUNK_MAX: Final = 2 * 1024 * 1024
PIECE: Final = 64 * 1024
#: Datagrams that are not yet sent.
_QUEUE_MAX: Final = 512
_RTO_FIRST: Final = 1.0
_RTO_MIN: Final = 0.2
#: Less than the minute of RFC 6298, which bulk transfer can wait; programs that use datagrams cannot.
_RTO_MAX: Final = 8.0
_ACK_DELAY: Final = 0.02
_MASK: Final = 0xFFFFFFFF


def _near(number: int, reference: int) -> int:
    """The full sequence number of which `number` is the last 32 bits, nearest to the reference."""
    delta = (number - reference) & _MASK
    return reference + (delta if delta < 1 << 31 else delta - (1 << 32))


@dataclass(slots=True)
class _Packet:
    number: int
    flags: int
    payload: bytes
    sent_at: float = 0.0
    times: int = 0  # how often it was sent
    order: int = 0  # of its last sending, among all sendings
    arrived: bool = False  # selectively acknowledged
    lost: bool = False  # to be sent again


class Timing:
    """The retransmission time-out of RFC 6298, in seconds."""

    def __init__(self) -> None:
        self.rto = self._base = _RTO_FIRST
        self._srtt: float | None = None
        self._var = 0.0

    def sample(self, rtt: float) -> None:
        """A round trip of something that was sent once."""
        if self._srtt is None:
            self._srtt, self._var = rtt, rtt / 2
        else:
            self._var = 0.75 * self._var + 0.25 * abs(self._srtt - rtt)
            self._srtt = 0.875 * self._srtt + 0.125 * rtt
        self._base = min(_RTO_MAX, max(_RTO_MIN, self._srtt + max(0.001, 4 * self._var)))
        self.rto = self._base

    def progress(self) -> None:
        """Something new was acknowledged: the network is there, whatever was lost."""
        self.rto = self._base

    def backoff(self) -> None:
        """Nothing came in time."""
        self.rto = min(_RTO_MAX, self.rto * 2)


class Sender:
    """What is sent and not yet acknowledged; congestion window in datagrams."""

    def __init__(self) -> None:
        self.queue: deque[tuple[int, bytes]] = deque()
        self.flight: deque[_Packet] = deque()
        self.next = 1
        self.acknowledged = 1  # the next number that the other end wants
        self.room = WINDOW
        self.window = 10.0
        self.threshold = float(WINDOW)
        self.timing = Timing()
        self.timer: float | None = None
        self._recover = 0  # in recovery until this number is acknowledged
        self._sendings = 0
        self._latest = [0] * LATER  # the last sendings that have arrived, as far as is known, in order
        self._expired_at = 0.0

    @property
    def done(self) -> bool:
        return not self.queue and not self.flight

    def due(self, now: float) -> list[_Packet]:
        """What may be sent now: lost ones first."""
        out = []
        outstanding = sum(1 for p in self.flight if not p.arrived and not p.lost)
        for packet in self.flight:
            if outstanding >= self.window:
                break
            if packet.lost:
                packet.lost = False
                outstanding += 1
                out.append(packet)
        limit = self.acknowledged + max(self.room, 1)
        while self.queue and outstanding < self.window and self.next < limit:
            flags, payload = self.queue.popleft()
            packet = _Packet(self.next, flags, payload)
            self.next += 1
            outstanding += 1
            self.flight.append(packet)
            out.append(packet)
        for packet in out:
            packet.sent_at = now
            packet.times += 1
            self._sendings += 1
            packet.order = self._sendings
        if out and self.timer is None:
            self.timer = now + self.timing.rto
        return out

    def acknowledge(self, upto: int, ranges: Iterable[tuple[int, int]], now: float) -> bool:
        """Whether the acknowledgement made sense."""
        if not self.acknowledged <= upto <= self.next:
            return upto < self.acknowledged  # an old one
        newest: _Packet | None = None
        advanced = upto > self.acknowledged
        count = 0
        while self.flight and self.flight[0].number < upto:
            packet = self.flight.popleft()
            if not packet.arrived:
                count += 1
                newest = packet
                self._has_arrived(packet)
        self.acknowledged = upto
        for first, past in ranges:
            for packet in self.flight:
                if first <= packet.number < past and not packet.arrived:
                    packet.arrived, packet.lost = True, False
                    count += 1
                    newest = packet
                    self._has_arrived(packet)
        if newest is not None:
            self.timing.progress()
        # Karn: answers to what was sent twice are ambiguous.  So are those after a time-out: it may be that
        # only an acknowledgement was lost.
        if newest is not None and newest.times == 1 and newest.sent_at > self._expired_at:
            self.timing.sample(max(0.0, now - newest.sent_at))
        self._find_lost()
        self._grow(count, upto)
        if not self.flight:
            self.timer = None
        elif advanced or count:
            self.timer = now + self.timing.rto
        return True

    def _has_arrived(self, packet: _Packet) -> None:
        self._latest = sorted([*self._latest, packet.order])[1:]

    def _find_lost(self) -> None:
        """Lost is what three that were sent later (also again) have overtaken."""
        lost = False
        for packet in self.flight:
            if not packet.arrived and not packet.lost and packet.order < self._latest[0]:
                packet.lost = lost = True
        if lost and self.acknowledged > self._recover:
            self._recover = self.next
            self.threshold = max(self.window / 2, 2.0)
            self.window = self.threshold

    def _grow(self, count: int, upto: int) -> None:
        if upto <= self._recover:
            return
        if self.window < self.threshold:
            self.window = min(self.window + count, float(WINDOW))
        elif count:
            self.window = min(self.window + count / self.window, float(WINDOW))

    def expired(self, now: float) -> None:
        """The timer has run out: everything that has not arrived is sent again, slowly at first."""
        self.timing.backoff()
        self._expired_at = now
        self.threshold = max(self.window / 2, 2.0)
        self.window = 1.0
        self._recover = self.acknowledged  # slow start goes on from here
        for packet in self.flight:
            packet.lost = not packet.arrived
        self.timer = now + self.timing.rto


_PARAMETERS: Final = (
    Parameter("mtu", "int", "the largest datagram, bytes", 1200, between(64, 65507)),
    Parameter("give_up", "float", "seconds without an answer", 30.0, between(0.1, 3600)),
)
_LAYER: Final = 70


class ReliablePipe(Pipe):
    """One end.  What it says of itself is for applications that register it as their own, as in the paper's
    listing 5."""

    parameters: ClassVar = _PARAMETERS
    upper: ClassVar = Interface.MESSAGES
    lower: ClassVar = Interface.DATAGRAMS
    layer: ClassVar = _LAYER
    wire = WIRE

    def __init__(self, args: Mapping[str, Any], wire: str, side: str, context: Context) -> None:
        super().__init__(args, wire, side, context)
        self._payload = int(args.get("mtu", 1200)) - HEADER.size
        self._give_up = float(args.get("give_up", 30.0))
        self._connection = secrets.randbits(32) if side == "client" else None
        self._message_max = int(args.get("message_max", MESSAGE_MAX))
        self._piece = int(args.get("piece", 0))
        self._out = Sender()
        self._in = Receiver(self._message_max, context.held)
        self._heard = 0.0
        self._answered = side == "server"
        self._hello_at: float | None = None
        self._ack_at: float | None = None
        self._unacknowledged = 0
        self._over = False
        self._rest_until: float | None = None

    # -- down -----------------------------------------------------------------------------------------

    def start(self) -> Iterable[bytes]:
        """The client's hello."""
        self._heard = self.context.clock()
        return self._hello(self._heard) if self.side == "client" else ()

    def _hello(self, now: float) -> list[bytes]:
        self._hello_at = now + self._out.timing.rto
        return [self._header(HELLO, 0, 0, 0)]

    def _header(self, kind: int, flags: int, a: int, b: int) -> bytes:
        return HEADER.pack(kind, flags, self._connection or 0, a & _MASK, b & _MASK)

    def down(self, item: Any) -> Iterable[bytes]:
        """Datagrams for one message."""
        data = octets(item, "reliable")
        return [out for piece in pieces(data, self._piece) for out in self._said(piece)]

    def _said(self, data: bytes) -> list[bytes]:
        if len(data) > self._message_max:
            raise ChunnelError(f"reliable: a message of {len(data)} bytes, more than {self._message_max}")
        parts = [data[at : at + self._payload] for at in range(0, len(data), self._payload)] or [b""]
        for i, part in enumerate(parts):
            self._out.queue.append((MORE if i + 1 < len(parts) else 0, part))
        return self._flush(self.context.clock())

    def down_end(self) -> Iterable[bytes]:
        """The end, which has a number as data has."""
        self._over = True
        self._out.queue.append((END, b""))
        return self._flush(self.context.clock())

    def _flush(self, now: float) -> list[bytes]:
        out: list[bytes] = []
        if self._connection is not None:
            if self._out.done:
                self._heard = max(self._heard, now)
            for packet in self._out.due(now):
                out.append(self._header(DATA, packet.flags, packet.number, self._in.wanted) + packet.payload)
        if out:
            self._ack_at = None
            self._unacknowledged = 0
        self._look(now)
        return out

    def _look(self, now: float) -> None:
        self.full_down = len(self._out.queue) > _QUEUE_MAX
        self.ended_up = self._in.ended
        if self._over and self._out.done and self._in.ended and self._rest_until is None:
            # Our last acknowledgement may get lost: the other end asks again.
            self._rest_until = now + 3 * self._out.timing.rto if self._connection is not None else now
        self.lingers_down = self._over and (self._rest_until is None or now < self._rest_until)

    # -- up -------------------------------------------------------------------------------------------

    def up(self, item: Any) -> tuple[Iterable[bytes], Iterable[bytes]]:
        """Messages, and acknowledgements."""
        now = self.context.clock()
        data = bytes(item)
        if len(data) < HEADER.size:
            return (), ()
        kind, flags, connection, a, b = HEADER.unpack_from(data)
        if kind == DATA and len(data) > HEADER.size + self._payload:
            return (), ()  # longer than agreed
        if self._connection is None and kind in (HELLO, DATA):
            self._connection = connection
        if connection != self._connection or kind not in (DATA, ACK, HELLO):
            return (), ()
        self._heard = now
        if kind == HELLO:
            return (), [self._ack()] + self._flush(now) if self.side == "server" else ()
        self._answered = True
        self._hello_at = None
        messages: list[bytes] = []
        at_once = False
        if kind == ACK:
            self._out.room = a
            self._out.acknowledge(_near(b, self._out.acknowledged), self._ranges(data, flags), now)
        else:
            self._out.acknowledge(_near(b, self._out.acknowledged), (), now)
            messages, at_once = self._in.take(_near(a, self._in.wanted), flags, data[HEADER.size :], now)
            self._unacknowledged += 1
        answers = self._flush(now)
        if kind == DATA:
            if at_once or self._unacknowledged >= 2 or self._in.ended:
                answers.append(self._ack())
            elif self._unacknowledged and self._ack_at is None:
                self._ack_at = now + _ACK_DELAY
        return messages, answers

    def _ranges(self, data: bytes, count: int) -> list[tuple[int, int]]:
        found = []
        for i in range(min(count, RANGES_MAX)):
            at = HEADER.size + i * _RANGE.size
            if at + _RANGE.size > len(data):
                break
            first, past = _RANGE.unpack_from(data, at)
            low = _near(first, self._out.acknowledged)
            found.append((low, _near(past, low)))
        return found

    def _ack(self) -> bytes:
        self._ack_at = None
        self._unacknowledged = 0
        ranges = self._in.ranges()
        head = self._header(ACK, len(ranges), self._in.room, self._in.wanted)
        return head + b"".join(_RANGE.pack(a & _MASK, b & _MASK) for a, b in ranges)

    def up_end(self) -> Iterable[bytes]:
        """After the other end's end only."""
        if not self._in.ended:
            raise ChunnelError("reliable: the connection was cut off")
        return ()

    def close(self) -> None:
        """Nothing of what has come is held any more."""
        self._in.drop()

    @property
    def begun_at(self) -> float:  # type: ignore[override]
        """When the message began that is not whole yet; inf: there is none."""
        return self._in.begun_at

    @property
    def answered(self) -> bool:  # type: ignore[override]
        """Whether the other end has ever acknowledged anything."""
        return self._out.acknowledged > 1

    # -- time -----------------------------------------------------------------------------------------

    def deadline(self) -> float | None:
        """The retransmission timer, a delayed acknowledgement, or the rest after the end."""
        times = [self._out.timer, self._hello_at, self._ack_at]
        if self.lingers_down:
            times.append(self._rest_until)
        return min((t for t in times if t is not None), default=None)

    def tick(self, now: float) -> tuple[Iterable[bytes], Iterable[bytes]]:
        """What time brings."""
        out: list[bytes] = []
        if self._hello_at is not None and now >= self._hello_at:
            self._check_patience(now)
            self._out.timing.backoff()
            out += self._hello(now)
        if self._out.timer is not None and now >= self._out.timer:
            self._check_patience(now)
            self._out.expired(now)
        out += self._flush(now)
        if self._ack_at is not None and now >= self._ack_at:
            out.append(self._ack())
        return (), out

    def _check_patience(self, now: float) -> None:
        if now - self._heard > self._give_up:
            raise ChunnelError(f"reliable: the other end has not answered for {self._give_up:g} s")


def bounds(above: ChunnelType | None, message_max: int | None) -> dict[str, int]:
    """Arguments that are no plan's: `message_max`, bytes of a message, and `piece`, into which longer chunks
    of a stream are cut.  `above`: the next chunnel that runs here; None: its messages are the program's,
    which can be so long."""
    found = {"message_max": MESSAGE_MAX if message_max is None else message_max}
    if above is not None:
        found["message_max"] = max(MESSAGE_MAX if message_max is None else CHUNK_MAX, found["message_max"])
        found["piece"] = PIECE if above.lower is Interface.STREAM else 0
    return found


TYPE = ChunnelType(
    name="reliable",
    summary="datagrams delivered once, in order",
    parameters=_PARAMETERS,
    upper=Interface.MESSAGES,
    lower=Interface.DATAGRAMS,
    layer=_LAYER,
    wire="brel/1: numbered datagrams, cumulative and selective acknowledgements",
    implementations=(
        # In C: in the native carrier of datagrams, and in Python's processes, which are the other carriers of
        # datagrams and applications that use `new`.
        Implementation(
            "native",
            "reliable",
            wires(WIRE),
            priority=NATIVE_PRIORITY,
            native_datagrams=True,
            probe=_reliable_native.usable,
            make=_reliable_native.NativeReliablePipe,
            builtin=True,
        ),
        Implementation("python", "reliable", wires(WIRE), make=ReliablePipe, builtin=True),
    ),
)
