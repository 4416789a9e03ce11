"""Exact look-ups of one TCP or UDP socket by its 4-tuple (NETLINK_SOCK_DIAG): what `ss` does, for one."""

from __future__ import annotations

import errno
import socket
import struct
from typing import Final, NamedTuple

from bertha_socket.agent import netlink
from bertha_socket.agent.addresses import V4_PREFIX, is_v4

_SOCK_DIAG_BY_FAMILY: Final = 20
_REQUEST: Final = struct.Struct("=BBBBI")
_PORTS: Final = struct.Struct("!HH")
_NO_COOKIE: Final = b"\xff" * 8
# struct inet_diag_msg: 4 bytes, inet_diag_sockid (48), then expires, rqueue, wqueue, uid, inode
_ANSWER_SIZE: Final = 4 + 48 + 20

ESTABLISHED: Final = 1
SYN_RECV: Final = 3
#: Of a UDP socket: it is there, and not connected.
BOUND: Final = 7
LISTEN: Final = 10
#: States of a connection that is there: established, or one end has begun to close.
CONNECTED: Final = frozenset({ESTABLISHED, 2, SYN_RECV, 4, 5, 8, 9, 11})


class Found(NamedTuple):
    """A socket as the kernel describes it.  `local`: what it is bound to, in 16-byte form."""

    state: int
    local: bytes
    local_port: int
    remote_port: int
    cookie: int
    uid: int


def _raw(addr: bytes, family: int) -> bytes:
    return (addr[12:] + bytes(12)) if family == socket.AF_INET else addr


def _mapped(family: int, raw: bytes) -> bytes:
    return V4_PREFIX + raw[:4] if family == socket.AF_INET else raw


def find(
    diag: socket.socket,
    local: bytes,
    local_port: int,
    remote: bytes | None = None,
    remote_port: int = 0,
    protocol: int = socket.IPPROTO_TCP,
) -> Found | None:
    """The socket that would take a packet from `remote` to `local`: the connection if there is one, else a
    listener.  None when there is neither.  Raises OSError when the kernel does not tell."""
    family = socket.AF_INET if is_v4(local) else socket.AF_INET6
    if remote is None:
        remote = bytes(16)
    ends = [_PORTS.pack(local_port, remote_port), _raw(local, family), _raw(remote, family)]
    if protocol == socket.IPPROTO_UDP:  # whose look-up is made from the packet's side
        ends = [_PORTS.pack(remote_port, local_port), _raw(remote, family), _raw(local, family)]
    body = (
        _REQUEST.pack(family, protocol, 0, 0, 0xFFFFFFFF)
        + b"".join(ends)
        + bytes(4)  # any interface
        + _NO_COOKIE
    )
    try:
        answers = netlink.ask(diag, _SOCK_DIAG_BY_FAMILY, 0, body)
    except OSError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    for kind, data in answers:
        if kind == _SOCK_DIAG_BY_FAMILY and len(data) >= _ANSWER_SIZE:
            sport, dport = _PORTS.unpack_from(data, 4)
            (cookie,) = struct.unpack_from("=Q", data, 44)
            (uid,) = struct.unpack_from("=I", data, 64)
            return Found(data[1], _mapped(data[0], data[8:24]), sport, dport, cookie, uid)
    return None


def is_listening(diag: socket.socket, addr: bytes, port: int, proto: str = "tcp") -> Found | None:
    """The listening socket that would take a connection to `addr`, or with "udp" the one that would take a
    stranger's datagram; None when there is none.

    Raises OSError when the kernel does not tell.
    """
    if proto == "udp":
        found = find(diag, addr, port, protocol=socket.IPPROTO_UDP)
        return found if found is not None and found.state == BOUND and found.local_port == port else None
    found = find(diag, addr, port)
    return found if found is not None and found.state == LISTEN and found.local_port == port else None


def has_connection(
    diag: socket.socket, local: bytes, local_port: int, remote: bytes, remote_port: int
) -> bool:
    """Whether that namespace has the half of a connection whose own end is `local`.

    Raises OSError when the kernel does not tell.
    """
    found = find(diag, local, local_port, remote, remote_port)
    return (
        found is not None
        and found.state in CONNECTED
        and found.local_port == local_port
        and found.remote_port == remote_port
    )
