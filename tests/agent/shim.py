"""A shim in Python: speaks the agent's protocol, and reads the directory as the C shim does.

Any number of them live in one test process: the agent sees one connection each.
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from bertha_socket._native import ffi, lib
from bertha_socket.agent import addresses, memory, messages
from bertha_socket.agent.messages import Op
from bertha_socket.reasons import Reason

_T = TypeVar("_T")
_CLONE_NEWNET = 0x40000000
PATIENCE = 10.0


class Hung(Exception):
    """The agent has ended the connection."""


class Reply(NamedTuple):
    status: int
    body: bytes
    fds: list[int]


class Entry(NamedTuple):
    port: int
    flags: int
    addr: str
    netns: int
    listener: int
    uid: int


def hello_body(
    *,
    program: str = "tester",
    exe: str = "/usr/bin/tester",
    argv: tuple[str, ...] = ("tester",),
    name: str = "",
    policy: str = "",
    layout: int = messages.LAYOUT_VERSION,
) -> bytes:
    args = b"".join(a.encode() + b"\0" for a in argv)
    return messages.HELLO.pack(
        os.getpid(),
        layout,
        program.encode(),
        name.encode(),
        exe.encode(),
        policy.encode(),
        args,
        len(args),
        b"0.test",
    )


@contextmanager
def as_user(uid: int) -> Iterator[None]:
    """What is connected meanwhile, is connected by that user (SO_PEERCRED is taken then)."""
    if uid == os.geteuid():
        yield
        return
    os.setegid(uid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def in_namespace(name: str, call: Callable[[], _T]) -> _T:
    """Calls it in a network namespace: a thread of its own enters that, and ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    result: list[Any] = []

    def run() -> None:
        fd = os.open(f"/run/netns/{name}", os.O_RDONLY)
        try:
            if libc.setns(fd, _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
            result.append(call())
        except BaseException as error:
            result.append(error)
        finally:
            os.close(fd)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(PATIENCE)
    if isinstance(result[0], BaseException):
        raise result[0]
    found: _T = result[0]
    return found


def netlinks() -> tuple[socket.socket, socket.socket]:
    return (
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0),
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 4),
    )


def listen(
    host: str = "127.0.0.1", port: int = 0, *, reuse_port: bool = False, v6only: bool | None = None
) -> socket.socket:
    """A listening TCP socket."""
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    if reuse_port:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    if v6only is not None:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(v6only))
    sock.bind((host, port))
    sock.listen(16)
    return sock


@dataclass
class Shim:
    """One connection to the agent."""

    path: str
    uid: int = field(default_factory=os.geteuid)
    seq: int = 0

    def __post_init__(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.sock.settimeout(PATIENCE)
        with as_user(self.uid):
            self.sock.connect(self.path)

    def __enter__(self) -> Shim:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.sock.close()

    def send(self, op: int, body: bytes = b"", fds: tuple[int, ...] = ()) -> None:
        self.seq += 1
        header = messages.HEADER.pack(messages.MAGIC, messages.VERSION, op, self.seq, 0)
        socket.send_fds(self.sock, [header + body], fds)

    def receive(self) -> Reply:
        try:
            data, fds, _, _ = socket.recv_fds(self.sock, 65536, 16)
        except ConnectionResetError:
            raise Hung from None
        if not data:
            raise Hung
        magic, version, _, seq, status = messages.HEADER.unpack_from(data)
        assert (magic, version, seq) == (messages.MAGIC, messages.VERSION, self.seq)
        reply = Reply(status, data[messages.HEADER.size :], list(fds))
        if status:
            assert not reply.body and not reply.fds
        return reply

    def ask(self, op: int, body: bytes = b"", fds: tuple[int, ...] = ()) -> Reply:
        try:
            self.send(op, body, fds)
        except (BrokenPipeError, ConnectionResetError):
            raise Hung from None
        return self.receive()

    def hello(self, table_fd: int = -1, **more: Any) -> int:
        """The directory's generation."""
        reply = self.ask(Op.HELLO, hello_body(**more), () if table_fd < 0 else (table_fd,))
        assert reply.status == 0
        generation, pid, _ = messages.HELLO_REPLY.unpack(reply.body)
        assert pid > 0
        return int(generation)

    def listen(self, sock: socket.socket, netns: str | None = None) -> tuple[int, int, int]:
        """(listener, implementations, claims).  Raises RefusedError."""
        reply = self.try_listen(sock, netns)
        if reply.status:
            raise RefusedError(Reason(reply.status))
        listener, bits, _ = messages.LISTEN_REPLY.unpack(reply.body)
        (claims,) = reply.fds
        return listener, bits, claims

    def try_listen(
        self,
        sock: socket.socket,
        netns: str | None = None,
        door: socket.socket | None = None,
        letters: socket.socket | None = None,
    ) -> Reply:
        route, diag = netlinks() if netns is None else in_namespace(netns, netlinks)
        with route, diag:
            fds = (sock.fileno(), route.fileno(), diag.fileno())
            fds += tuple(s.fileno() for s in (door, letters) if s is not None)
            return self.ask(Op.LISTEN, messages.LISTEN.pack(0), fds)

    def listen_with(
        self, sock: socket.socket, netns: str | None = None, door: socket.socket | None = None
    ) -> tuple[int, messages.DagNeed, int]:
        """(listener, what its connections may have, claims).  Raises RefusedError."""
        reply = self.try_listen(sock, netns, door)
        if reply.status:
            raise RefusedError(Reason(reply.status))
        listener, _, need = messages.LISTEN_REPLY.unpack(reply.body)
        (claims,) = reply.fds
        assert claims_need(claims)[0] == need
        return listener, messages.DagNeed(need), claims

    def negotiate(
        self,
        host: str,
        port: int,
        *,
        netns: str | None = None,
        fresh: bool = False,
        patience_ms: int = 300,
        device: str = "",
    ) -> Negotiated:
        """`device`: what the sockets are bound to.  Raises RefusedError."""

        def probes() -> tuple[socket.socket, socket.socket]:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            found = socket.socket(family), socket.socket(family, socket.SOCK_DGRAM)
            for sock in found if device else ():
                sock.setsockopt(socket.SOL_SOCKET, 25, device.encode() + b"\0")  # SO_BINDTODEVICE
            return found

        tcp, udp = probes() if netns is None else in_namespace(netns, probes)
        with tcp, udp:
            cookie = memory.netns_cookie(tcp.fileno())
            addr = addresses.from_text(host)
            body = messages.NEGOTIATE.pack(addr, port, int(fresh), patience_ms, cookie)
            reply = self.ask(Op.NEGOTIATE, body, (tcp.fileno(), udp.fileno()))
        if reply.status:
            raise RefusedError(Reason(reply.status))
        assert not reply.fds
        size = messages.NEGOTIATE_REPLY.size
        head = messages.NEGOTIATE_REPLY.unpack(reply.body[:size])
        verdict, carrier, valid_ms, plan_size, _, spin_us, _, detail = head
        plan = reply.body[size:]
        assert len(plan) == plan_size and detail[-1] == 0
        text = detail.partition(b"\0")[0].decode()
        kind = messages.CarrierKind(carrier)
        return Negotiated(messages.Verdict(verdict), kind, valid_ms, plan, text, spin_us)

    def carrier(self, kind: messages.CarrierKind) -> socket.socket:
        """The shim's end of a new way to a carrier.  Raises RefusedError."""
        reply = self.ask(Op.CARRIER, messages.CARRIER.pack(kind, 0))
        if reply.status:
            raise RefusedError(Reason(reply.status))
        assert messages.CARRIER.unpack(reply.body)[0] == kind
        (fd,) = reply.fds
        return socket.socket(fileno=fd)

    def unlisten(self, listener: int) -> None:
        self.send(Op.UNLISTEN, messages.UNLISTEN.pack(listener))

    def connect(self, listener: int, host: str, port: int, netns: int) -> Link:
        """Raises RefusedError."""
        body = messages.CONNECT.pack(listener, addresses.from_text(host), port, 0, 0, netns)
        return self._link(self.ask(Op.CONNECT, body), claims=True)

    def link(self, listener: int, index: int) -> Link:
        """Raises RefusedError."""
        return self._link(self.ask(Op.LINK, messages.LINK.pack(listener, index, 0)), claims=False)

    def _link(self, reply: Reply, *, claims: bool) -> Link:
        if reply.status:
            raise RefusedError(Reason(reply.status))
        listener, index, _, *more = messages.LINK_REPLY.unpack(reply.body)
        plan, (users, uid, proof) = more[:4], more[4:]
        claimant = messages.Claimant(users, uid, messages.Proof(proof))
        fds = list(reply.fds)
        link_fd = fds.pop(0)
        claims_fd = fds.pop(0) if claims else -1
        mailbox = fds.pop(0) if fds else -1
        assert not fds
        return Link(listener, index, messages.WirePlan(*plan), link_fd, claims_fd, mailbox, claimant)

    def resolve_nothing(self) -> None:
        """A question without consequence: what was sent before it has been done when it is answered."""
        body = messages.RESOLVE.pack(b"", b"", 0, 0, 0, *([0] * messages.RESOLVE_MAX))
        assert self.ask(Op.RESOLVE, body).status == 0

    def new_bell(self) -> tuple[int, int]:
        """(number, our eventfd)."""
        fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        reply = self.ask(Op.BELL_NEW, messages.BELL.pack(0, 0), (fd,))
        assert reply.status == 0
        return messages.BELL.unpack(reply.body)[0], fd

    def get_bell(self, number: int) -> int:
        """Raises RefusedError."""
        reply = self.ask(Op.BELL_GET, messages.BELL.pack(number, 0))
        if reply.status:
            raise RefusedError(Reason(reply.status))
        return reply.fds[0]

    def resolve(self, connection: socket.socket, listeners: list[int]) -> int:
        """As the client of `connection`."""
        local, peer = connection.getsockname(), connection.getpeername()
        ids = listeners + [0] * (messages.RESOLVE_MAX - len(listeners))
        body = messages.RESOLVE.pack(
            addresses.from_text(local[0]),
            addresses.from_text(peer[0]),
            local[1],
            peer[1],
            len(listeners),
            *ids,
        )
        reply = self.ask(Op.RESOLVE, body)
        assert reply.status == 0
        return int(messages.RESOLVE_REPLY.unpack(reply.body)[0])


class Negotiated(NamedTuple):
    """NEGOTIATE's reply."""

    verdict: messages.Verdict
    carrier: messages.CarrierKind
    valid_ms: int
    plan: bytes
    detail: str
    spin_us: int

    def types(self) -> list[str]:
        from bertha_socket.negotiation.plan import Plan

        return [c.type for c in Plan.decode(self.plan).chunnels]


def claims_need(claims: int) -> tuple[int, int]:
    """The words `dag` and `dag_carrier` of a listener's claims."""
    data = os.pread(claims, 8, lib.OFFSETOF_claims_dag)
    assert lib.OFFSETOF_claims_dag_carrier == lib.OFFSETOF_claims_dag + 4
    need, carrier = struct.unpack("=II", data)
    return need, carrier


def claims_spin(claims: int) -> int:
    """The word `dag_spin_us` of a listener's claims."""
    return int.from_bytes(os.pread(claims, 4, lib.OFFSETOF_claims_dag_spin_us), sys.byteorder)


class RefusedError(Exception):
    """The agent answered with a status."""

    def __init__(self, why: Reason) -> None:
        super().__init__(why.name)


@dataclass
class Link:
    listener: int
    index: int
    plan: messages.WirePlan
    fd: int
    claims: int
    mailbox: int
    claimant: messages.Claimant

    def dead(self) -> bool:
        (word,) = struct.unpack("=I", os.pread(self.fd, 4, lib.OFFSETOF_link_dead))
        return bool(word)

    def close(self) -> None:
        for fd in (self.fd, self.claims, self.mailbox):
            if fd >= 0:
                os.close(fd)


def generation(path: str) -> int:
    data = Path(path + ".dir").read_bytes()[:64]
    return int(lib.agent_dir_generation(ffi.from_buffer(data)))


_ENTRY = struct.Struct("=IHH16sQQII16x")


def entries(path: str) -> list[Entry]:
    """Everything that the directory lists."""
    data = Path(path + ".dir").read_bytes()
    found = []
    for seq, port, flags, addr, netns, listener, uid, _ in _ENTRY.iter_unpack(data[64:]):
        assert seq % 2 == 0
        if listener:
            found.append(Entry(port, flags, addresses.to_text(addr), netns, listener, uid))
    return found


def find(path: str, host: str, port: int) -> list[Entry]:
    """What a shim would find: by the hash and linear probing, up to the first entry never used."""
    data = Path(path + ".dir").read_bytes()[64:]
    addr = addresses.from_text(host)
    at = lib.bertha_dir_hash(addr, port) % lib.BERTHA_DIR_ENTRIES
    found = []
    for _ in range(lib.BERTHA_DIR_ENTRIES):
        _, port_in, flags, addr_in, netns, listener, uid, _ = _ENTRY.unpack_from(data, at * _ENTRY.size)
        if port_in == 0:
            break
        if listener and (addr_in, port_in) == (addr, port):
            found.append(Entry(port, flags, host, netns, listener, uid))
        at = (at + 1) % lib.BERTHA_DIR_ENTRIES
    return found
