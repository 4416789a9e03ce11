"""What two agents say to each other, and the frames it travels in.

A frame is a length (u32, big endian, of what follows), a MAC of 32 bytes and a msgpack map.  Everything has a
limit; a stranger who has not yet been authenticated may send HELLO_MAX bytes.  Unknown fields are ignored.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from enum import Enum
from typing import Final

from bertha_socket.negotiation._codec import Fields, NegotiationError, fail, pack, printable, unpack
from bertha_socket.negotiation.offer import OFFER_MAX, Offer, offer_from
from bertha_socket.negotiation.plan import PLAN_MAX, REFUSAL_LIMITS, Plan, Refusal

VERSION: Final = 1
#: The oldest version that is still spoken.
VERSION_LOW: Final = 1
PROTOCOL: Final = "bertha negotiation"
NONCE_SIZE: Final = 16
MAC_SIZE: Final = 32
LENGTH_SIZE: Final = 4
#: Bytes of a body.
HELLO_MAX: Final = 512
ASK_MAX: Final = OFFER_MAX + 256
ANSWER_MAX: Final = PLAN_MAX + 256
_WHY_MAX: Final = 300
_ADDRESS_MAX: Final = 45


class Kind(Enum):
    """The kinds of messages, by their names on the wire."""

    HELLO = "hello"
    OFFER = "offer"
    PLAN = "plan"
    REFUSAL = "refusal"
    NO_LISTENER = "no_listener"
    ERROR = "error"


_KINDS: Final = {k.value: k for k in Kind}
_PROTOS: Final = {"tcp": "tcp", "udp": "udp"}


class NoListener(Enum):
    """The answer of an agent that knows of no listener there."""

    NO_LISTENER = "no listener"


NO_LISTENER: Final = NoListener.NO_LISTENER


@dataclass(frozen=True, slots=True)
class Hello:
    """First of either side.  A nonce is random and never used twice."""

    nonce: bytes
    #: Whether the sender has a cluster key; only to say what is wrong when the MAC is.
    keyed: bool
    version: int = VERSION
    low: int = VERSION_LOW


@dataclass(frozen=True, slots=True)
class Asked:
    """A client's question: what it is to do with connections to this listener."""

    #: The listener's address as the client's program gave it (text), and its port.
    addr: str
    port: int
    offer: Offer
    #: "tcp" or "udp".
    proto: str = "tcp"


@dataclass(frozen=True, slots=True)
class Trouble:
    """The other agent could not go on.  Anybody on the way may have written this: it is not authenticated."""

    why: str


Message = Hello | Asked | Plan | Refusal | NoListener | Trouble


def encode(message: Message) -> bytes:
    """The body of a message.  Raises NegotiationError: something in it is too long."""
    return pack(_fields(message))


def kind_of(message: Message) -> Kind:
    """The kind of a message."""
    match message:
        case Hello():
            return Kind.HELLO
        case Asked():
            return Kind.OFFER
        case Plan():
            return Kind.PLAN
        case Refusal():
            return Kind.REFUSAL
        case NoListener():
            return Kind.NO_LISTENER
        case Trouble():
            return Kind.ERROR


def _fields(message: Message) -> dict[str, object]:
    found: dict[str, object] = {"kind": kind_of(message).value}
    match message:
        case Hello():
            found |= {
                "protocol": PROTOCOL,
                "v": message.version,
                "low": message.low,
                "nonce": message.nonce,
                "keyed": message.keyed,
            }
        case Asked():
            message.offer.encode()  # it has the limit
            found |= {"addr": message.addr, "port": message.port, "offer": message.offer.fields()}
            if message.proto != "tcp":
                found["proto"] = message.proto
        case Plan():
            found |= {"plan": message.encode()}
        case Refusal():
            found |= {name: getattr(message, name) for name in REFUSAL_LIMITS}
        case Trouble():
            found |= {"why": printable(message.why, _WHY_MAX)}
        case NoListener():
            pass
    return found


def decode(body: bytes, limit: int) -> Message:
    """The message in a body of at most `limit` bytes.  Raises NegotiationError."""
    f = unpack(body, limit, "message")
    kind = f.one_of("kind", _KINDS)
    match kind:
        case Kind.HELLO:
            return _hello(f)
        case Kind.OFFER:
            proto = f.one_of("proto", _PROTOS) if f.has("proto") else "tcp"
            addr = _address(f.text("addr", _ADDRESS_MAX))
            return Asked(addr, f.whole("port", 1, 65535), _offer(f), proto)
        case Kind.PLAN:
            return Plan.decode(f.raw("plan", 1, PLAN_MAX))
        case Kind.REFUSAL:
            return Refusal(**{name: f.text(name, limit) for name, limit in REFUSAL_LIMITS.items()})
        case Kind.NO_LISTENER:
            return NO_LISTENER
        case Kind.ERROR:
            return Trouble(f.text("why", _WHY_MAX))


def _hello(f: Fields) -> Hello:
    if f.text("protocol", 64) != PROTOCOL:
        fail("message: another protocol than ours")
    version, low = f.whole("v", 1, 2**16), f.whole("low", 1, 2**16)
    if low > VERSION or version < VERSION_LOW:
        problem = f"message: it speaks versions {low} to {version}, we {VERSION_LOW} to {VERSION}"
        raise NegotiationError(f"{problem}; run the same release at both ends")
    return Hello(f.raw("nonce", NONCE_SIZE, NONCE_SIZE), f.flag("keyed"), version, low)


def _address(text: str) -> str:
    """An IP address, in its one form.  A zone (fe80::1%eth0) would mean something else at the other end."""
    try:
        found = ipaddress.ip_address(text)
    except ValueError:
        found = None
    if found is None or "%" in text:
        fail(f"message: '{text}' is not an IP address")
    return str(found)


def _offer(f: Fields) -> Offer:
    return offer_from(f.map("offer"))


def frame(mac: bytes, body: bytes) -> bytes:
    """A message as it is sent."""
    return (MAC_SIZE + len(body)).to_bytes(LENGTH_SIZE, "big") + mac + body
