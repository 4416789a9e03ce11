"""The wire format between a shim and its agent: native/core/protocol.h, in Python.

Packs and unpacks, and refuses whatever has not exactly the length and the form that the header states: a
message comes from a process that may be hostile.  No I/O here.
"""

from __future__ import annotations

import re
import struct
from enum import IntEnum
from typing import Final, NamedTuple

MAGIC: Final = 0x41545242
VERSION: Final = 1
LAYOUT_VERSION: Final = 8
MESSAGE_MAX: Final = 16384
RESOLVE_MAX: Final = 8

IMPL_SHM: Final = 1
IMPL_UNIX: Final = 2
IMPL_TCP: Final = 4
UINT32_MAX: Final = 0xFFFFFFFF

# "=": no padding of Python's own; the C structs are naturally aligned (a test compares the sizes).
HEADER: Final = struct.Struct("=IHHII")
HELLO: Final = struct.Struct("=II64s64s512s512s2048sI32s")
HELLO_REPLY: Final = struct.Struct("=QII")
LISTEN: Final = struct.Struct("=Q")
LISTEN_REPLY: Final = struct.Struct("=QII")
UNLISTEN: Final = struct.Struct("=Q")
CONNECT: Final = struct.Struct("=Q16sHHIQ")
LINK: Final = struct.Struct("=QII")
LINK_REPLY: Final = struct.Struct("=QIIIIIIQII")
BELL: Final = struct.Struct("=II")
RESOLVE: Final = struct.Struct("=16s16sHHI8Q")
RESOLVE_REPLY: Final = struct.Struct("=Q")
NEGOTIATE: Final = struct.Struct("=16sHHIQ")
NEGOTIATE_REPLY: Final = struct.Struct("=IIIIQII400s")
CARRIER: Final = struct.Struct("=II")

#: In HELLO's reply: a rule of the process's policy has chunnels for it as a client.
HELLO_CLIENT_DAGS: Final = 1
#: The same for datagrams: as a client; as one to whom others send.
HELLO_CLIENT_DATAGRAMS: Final = 2
HELLO_SERVER_DATAGRAMS: Final = 4
#: Its policy file cannot be read, or makes no sense.
HELLO_NO_POLICY: Final = 8
#: In NEGOTIATE: what is remembered about this destination has proved wrong; it is about datagrams.
NEGOTIATE_FRESH: Final = 1
NEGOTIATE_DATAGRAMS: Final = 2
#: Who asks requires chunnels, whatever his policy file says now.
NEGOTIATE_MUST: Final = 4
BRING_MAX: Final = 8192
PLAN_MAX: Final = 8192  # BERTHA_CARRIER_PLAN_MAX
_DETAIL_MAX: Final = 399


class Op(IntEnum):
    """What a message asks for (enum bertha_op)."""

    HELLO = 1
    LISTEN = 2
    UNLISTEN = 3
    CONNECT = 4
    LINK = 5
    BELL_NEW = 6
    BELL_GET = 7
    RESOLVE = 8
    NEGOTIATE = 9
    CARRIER = 10
    UNLINK = 11
    BRING = 12
    OFFER = 20
    STATUS = 100
    STOP = 101


class DagNeed(IntEnum):
    """What a listener's connections may be negotiated to have (enum bertha_dag_need)."""

    NONE = 0
    REQUIRED = 1
    MAYBE = 2


class Verdict(IntEnum):
    """The outcome of a negotiation (enum bertha_verdict)."""

    PLAIN = 0
    PLAN = 1
    REFUSED = 2
    #: Nobody to ask; said only to applications that have made an offer.
    NOBODY = 3


class CarrierKind(IntEnum):
    """BERTHA_CARRIER_*: which process runs a connection's chunnels."""

    NATIVE = 0
    #: Chunnels that are our own.
    PYTHON = 1
    #: Others' code, in a process of the caller's user.
    AUTHORS = 2


class BadMessage(Exception):
    """The peer does not speak the protocol; its connection is to be ended."""


class Request(NamedTuple):
    """A message's header (checked) and its body (not yet)."""

    op: Op
    seq: int
    body: bytes


class Hello(NamedTuple):
    """What a process says of itself.  Only `pid`, seen from its own namespace, is a number."""

    pid: int
    layout_version: int
    program: str
    name: str
    exe: str
    policy: str
    argv: tuple[str, ...]
    package_version: str


class Connect(NamedTuple):
    """A wish for a link to `listener`, reached under that address."""

    listener: int
    server_addr: bytes
    server_port: int
    netns: int


class Resolve(NamedTuple):
    """A connection's 4-tuple and the listeners one of which may have its other half."""

    client_addr: bytes
    server_addr: bytes
    client_port: int
    server_port: int
    listeners: tuple[int, ...]


class Negotiate(NamedTuple):
    """A wish to know which chunnels connections to that address are to have."""

    server_addr: bytes
    server_port: int
    fresh: bool
    patience_ms: int
    netns: int
    #: "tcp" or "udp".
    proto: str = "tcp"
    #: Who asks requires chunnels, whatever his policy file says now.
    must: bool = False

    @property
    def place(self) -> tuple[str, bytes, int]:
        """What it is about: protocol, address and port."""
        return self.proto, self.server_addr, self.server_port


_CHUNNEL: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,63}")
_SOURCE: Final = re.compile(r"(?:/[^\0]*\.py|[^\W\d]\w*(?:\.[^\W\d]\w*)*):[^\W\d]\w*(?:\.[^\W\d]\w*)*")


class Proof(IntEnum):
    """enum bertha_proof."""

    NEEDED = 0
    NONE = 1
    ELSEWHERE = 2


class Claimant(NamedTuple):
    """struct bertha_claimant: whose claims come by a link, and what a server needs to believe them."""

    users: int
    uid: int
    proof: Proof


class WirePlan(NamedTuple):
    """struct bertha_plan: how one pair of a client process and a listener talks."""

    implementation: int
    spin_us: int
    ring_size: int
    reason: int


def parse(data: bytes) -> Request:
    """Checks a message's header.  Raises BadMessage."""
    if len(data) < HEADER.size or len(data) > MESSAGE_MAX:
        raise BadMessage(f"a message of {len(data)} bytes")
    magic, version, op, seq, status = HEADER.unpack_from(data)
    if magic != MAGIC or version != VERSION or status != 0:
        raise BadMessage("not a request of this protocol's version")
    try:
        known = Op(op)
    except ValueError:
        raise BadMessage(f"unknown request {op}") from None
    return Request(known, seq, data[HEADER.size :])


def reply(op: int, seq: int, status: int, body: bytes = b"") -> bytes:
    """The bytes of an answer; with a status other than 0 there is no body."""
    return HEADER.pack(MAGIC, VERSION, op, seq, status) + (b"" if status else body)


def _exact(form: struct.Struct, body: bytes) -> tuple[object, ...]:
    if len(body) != form.size:
        raise BadMessage(f"a body of {len(body)} bytes where {form.size} belong")
    return form.unpack(body)


def _text(raw: object, what: str) -> str:
    assert isinstance(raw, bytes)
    text, nul, _ = raw.partition(b"\0")
    if not nul:
        raise BadMessage(f"{what} has no end")
    return text.decode("utf-8", "surrogateescape")


def parse_hello(body: bytes) -> Hello:
    """Raises BadMessage."""
    pid, layout, program, name, exe, policy, args, args_len, version = _exact(HELLO, body)
    assert isinstance(pid, int) and isinstance(layout, int)
    assert isinstance(args, bytes) and isinstance(args_len, int)
    if args_len > len(args):
        raise BadMessage("arguments longer than their field")
    policy_path = _text(policy, "policy")
    if policy_path and not policy_path.startswith("/"):
        raise BadMessage("the policy file's path is not absolute")
    words = args[:args_len].split(b"\0") if args_len else []
    if words and not words[-1]:
        words.pop()
    return Hello(
        pid,
        layout,
        _text(program, "program"),
        _text(name, "name"),
        _text(exe, "exe"),
        policy_path,
        tuple(w.decode("utf-8", "surrogateescape") for w in words),
        _text(version, "package version"),
    )


def parse_listen(body: bytes) -> None:
    """Raises BadMessage."""
    _exact(LISTEN, body)


def parse_unlisten(body: bytes) -> int:
    """The listener.  Raises BadMessage."""
    (listener,) = _exact(UNLISTEN, body)
    assert isinstance(listener, int)
    return listener


def parse_connect(body: bytes) -> Connect:
    """Raises BadMessage."""
    listener, addr, port, _, _, netns = _exact(CONNECT, body)
    assert isinstance(listener, int) and isinstance(addr, bytes)
    assert isinstance(port, int) and isinstance(netns, int)
    return Connect(listener, addr, port, netns)


def parse_link(body: bytes) -> tuple[int, int]:
    """Listener and index.  Raises BadMessage."""
    listener, index, _ = _exact(LINK, body)
    assert isinstance(listener, int) and isinstance(index, int)
    return listener, index


def parse_bell(body: bytes) -> int:
    """The bell's number.  Raises BadMessage."""
    bell, _ = _exact(BELL, body)
    assert isinstance(bell, int)
    return bell


def parse_resolve(body: bytes) -> Resolve:
    """Raises BadMessage."""
    client, server, client_port, server_port, count, *listeners = _exact(RESOLVE, body)
    assert isinstance(client, bytes) and isinstance(server, bytes)
    assert isinstance(client_port, int) and isinstance(server_port, int) and isinstance(count, int)
    if count > RESOLVE_MAX:
        raise BadMessage(f"{count} listeners to choose from")
    ids = tuple(dict.fromkeys(i for i in listeners[:count] if isinstance(i, int)))
    return Resolve(client, server, client_port, server_port, ids)


def parse_negotiate(body: bytes) -> Negotiate:
    """Raises BadMessage."""
    addr, port, flags, patience, netns = _exact(NEGOTIATE, body)
    assert isinstance(addr, bytes) and isinstance(port, int) and isinstance(flags, int)
    assert isinstance(patience, int) and isinstance(netns, int)
    if port == 0:
        raise BadMessage("a destination without a port")
    proto = "udp" if flags & NEGOTIATE_DATAGRAMS else "tcp"
    must = bool(flags & NEGOTIATE_MUST)
    return Negotiate(addr, port, bool(flags & NEGOTIATE_FRESH), patience, netns, proto, must)


def parse_carrier(body: bytes) -> CarrierKind:
    """Raises BadMessage."""
    kind, _ = _exact(CARRIER, body)
    assert isinstance(kind, int)
    try:
        return CarrierKind(kind)
    except ValueError:
        raise BadMessage(f"no carrier {kind}") from None


def parse_bring(body: bytes) -> dict[str, str]:
    """Where classes of chunnels are, by name.  Raises BadMessage."""
    if len(body) > BRING_MAX or body[-1:] not in (b"", b"\0"):
        raise BadMessage(f"{len(body)} bytes about chunnels")
    try:
        words = body.decode("utf-8").split("\0")[:-1]
    except UnicodeDecodeError:
        raise BadMessage("chunnels that are no text") from None
    found = dict(zip(words[::2], words[1::2], strict=False))
    if len(words) != 2 * len(found):
        raise BadMessage("chunnels without a source, or twice")
    for name, source in found.items():
        if not _CHUNNEL.fullmatch(name) or not _SOURCE.fullmatch(source):
            raise BadMessage("a chunnel whose name or source is none")
    return found


def one_line(text: str) -> bytes:
    """A text as replies carry it: one line that fits its field."""
    data = " ".join(text.split()).encode("utf-8", "replace")[:_DETAIL_MAX]
    return data.decode("utf-8", "ignore").encode("utf-8")


def pack_negotiate_reply(
    verdict: Verdict,
    carrier: CarrierKind,
    valid_ms: int,
    plan: bytes = b"",
    detail: str = "",
    context: int = 0,
    spin_us: int = UINT32_MAX,
) -> bytes:
    """struct bertha_negotiate_reply, and the plan."""
    assert len(plan) <= PLAN_MAX
    text = one_line(detail)
    return NEGOTIATE_REPLY.pack(verdict, carrier, valid_ms, len(plan), context, spin_us, 0, text) + plan


def pack_link_reply(listener: int, index: int, plan: WirePlan, claimant: Claimant) -> bytes:
    """struct bertha_link_reply."""
    return LINK_REPLY.pack(listener, index, 0, *plan, *claimant)
