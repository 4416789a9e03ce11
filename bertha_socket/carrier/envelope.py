"""What two carriers say of datagrams: wire "bdg/1".

Each datagram between them begins with `b"\\xbeBRD"`, u8 kind, u64 session (big-endian, chosen by the client
at random).  HELLO (1), ACCEPT (2) and REFUSE (3) go on with a msgpack map, DATA (4) with what the lowest
chunnel gives.  HELLO: `v`, `plan`, and with a cluster key `mac`, an HMAC-SHA256 over session and plan;
ACCEPT: `v`, and with a key `mac`; REFUSE: `v`, `why`.  UNKNOWN (5) answers DATA of a session that is not
there (any more), so that the client says HELLO again.  ASK (6) is the question of a client that has no agent,
ANSWER (7) what an application that runs its chunnels itself replies: the messages of two agents
(`negotiation.machine`), compressed (RFC 1950); carriers do not answer it.  END (8), which may get lost, says
that nothing more will be sent in this session; `reliable` and `encrypt` say themselves where theirs ends.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
import zlib
from enum import IntEnum
from typing import Any, Final, NamedTuple

import msgpack

from bertha_socket.negotiation.datagram import unpacked

MAGIC: Final = b"\xbeBRD"
HEAD: Final = struct.Struct(">4sBQ")
#: Bytes that a HELLO may have: it is one datagram, and must not be cut up on the way.
HELLO_MAX: Final = 1200
WHY_MAX: Final = 400
#: Bytes of what two agents say of one connection, at most.
SAID_MAX: Final = 1 << 16
_CLIENT: Final = b"bertha datagrams v1 client"
_SERVER: Final = b"bertha datagrams v1 server"


class Kind(IntEnum):
    """What a datagram is."""

    HELLO = 1
    ACCEPT = 2
    REFUSE = 3
    DATA = 4
    UNKNOWN = 5
    ASK = 6
    ANSWER = 7
    END = 8


_KINDS: Final = {int(k): k for k in Kind}


class Envelope(NamedTuple):
    """A datagram of another carrier's; `body` is not yet looked at."""

    kind: Kind
    session: int
    body: bytes


def opened(datagram: bytes) -> Envelope | None:
    """What came, if it is ours at all; bytes of a kind that is not known are nothing."""
    if len(datagram) < HEAD.size or not datagram.startswith(MAGIC):
        return None
    _, number, session = HEAD.unpack_from(datagram)
    kind = _KINDS.get(number)
    return None if kind is None else Envelope(kind, session, datagram[HEAD.size :])


def is_ours(datagram: bytes) -> bool:
    """Whether a carrier has sent this, sense or not."""
    return datagram.startswith(MAGIC)


def sealed(kind: Kind, session: int, body: bytes = b"") -> bytes:
    """A datagram for another carrier."""
    return HEAD.pack(MAGIC, kind, session) + body


def _mac(key: bytes, label: bytes, session: int, plan: bytes) -> bytes:
    return hmac.digest(key, label + session.to_bytes(8, "big") + plan, hashlib.sha256)


def _map(body: bytes) -> dict[str, Any] | None:
    try:
        found = msgpack.unpackb(body, max_map_len=64, max_array_len=64, max_ext_len=0)
    except (ValueError, TypeError, RecursionError, msgpack.exceptions.UnpackException):
        return None
    return found if isinstance(found, dict) and found.get("v") == 1 else None


def hello(session: int, plan: bytes, key: bytes | None) -> bytes:
    """The client's first."""
    fields: dict[str, object] = {"v": 1, "plan": plan}
    if key is not None:
        fields["mac"] = _mac(key, _CLIENT, session, plan)
    return sealed(Kind.HELLO, session, msgpack.packb(fields))


def read_hello(envelope: Envelope, key: bytes | None) -> tuple[bytes | None, str | None]:
    """The plan, or why the client is not to be believed; neither: it makes no sense, and gets no answer."""
    fields = _map(envelope.body)
    plan = fields.get("plan") if fields is not None else None
    if fields is None or not isinstance(plan, bytes) or not plan:
        return None, None
    mac = fields.get("mac")
    if key is None:
        return (
            (plan, None) if mac is None else (None, "the client has a cluster key, and the server has none")
        )
    if not isinstance(mac, bytes):
        return None, "the client has no cluster key, and the server has one"
    if not hmac.compare_digest(mac, _mac(key, _CLIENT, envelope.session, plan)):
        return None, "the client has another cluster key than the server"
    return plan, None


def accept(session: int, plan: bytes, key: bytes | None) -> bytes:
    """The server's yes."""
    fields: dict[str, object] = {"v": 1}
    if key is not None:
        fields["mac"] = _mac(key, _SERVER, session, plan)
    return sealed(Kind.ACCEPT, session, msgpack.packb(fields))


def is_accepted(envelope: Envelope, plan: bytes, key: bytes | None) -> bool:
    """Whether this is the yes of somebody who has the key; anything else is as if it had not come."""
    fields = _map(envelope.body)
    if fields is None:
        return False
    if key is None:
        return True
    mac = fields.get("mac")
    wanted = _mac(key, _SERVER, envelope.session, plan)
    return isinstance(mac, bytes) and hmac.compare_digest(mac, wanted)


def ask(session: int, said: bytes) -> bytes:
    """The question for a plan: `said` is an Initiator's."""
    return sealed(Kind.ASK, session, zlib.compress(said))


def answer(session: int, said: bytes) -> bytes:
    """The answer to it: `said` is a Responder's."""
    return sealed(Kind.ANSWER, session, zlib.compress(said))


def said(envelope: Envelope) -> bytes:
    """What an ASK or ANSWER holds; nothing where it makes no sense or is longer than agents may be."""
    return unpacked(envelope.body, SAID_MAX) or b""


def refuse(session: int, why: str) -> bytes:
    """The server's no."""
    text = why.encode("utf-8")[:WHY_MAX].decode("utf-8", "ignore")
    return sealed(Kind.REFUSE, session, msgpack.packb({"v": 1, "why": text}))


def why_refused(envelope: Envelope) -> str:
    """The reason in a REFUSE, made printable."""
    fields = _map(envelope.body)
    why = fields.get("why") if fields is not None else None
    text = why if isinstance(why, str) and why else "no reason given"
    return "".join(c if c.isprintable() else "?" for c in text[:WHY_MAX])
