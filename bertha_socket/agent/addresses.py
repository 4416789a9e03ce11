"""Addresses in the protocol's one form (16 bytes, IPv4 v4-mapped), and the addresses of a namespace."""

from __future__ import annotations

import errno
import socket
import struct
from typing import Final

from bertha_socket.agent import netlink

_RTM_NEWADDR: Final = 20
_RTM_GETADDR: Final = 22
_IFADDRMSG: Final = struct.Struct("=BBBBI")
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
_TRIES: Final = 4

V4_PREFIX: Final = b"\0" * 10 + b"\xff\xff"
ANY_V4: Final = V4_PREFIX + b"\0\0\0\0"
ANY_V6: Final = b"\0" * 16
LOOPBACK_V4: Final = V4_PREFIX + b"\x7f\0\0\1"
LOOPBACK_V6: Final = b"\0" * 15 + b"\1"


def is_v4(addr: bytes) -> bool:
    """Whether it is an IPv4 address in v4-mapped form."""
    return addr.startswith(V4_PREFIX)


def is_wildcard(addr: bytes) -> bool:
    """0.0.0.0 or ::"""
    return addr in (ANY_V4, ANY_V6)


def is_loopback(addr: bytes) -> bool:
    """127.0.0.0/8 or ::1"""
    return addr == LOOPBACK_V6 or (is_v4(addr) and addr[12] == 127)


def from_text(text: str) -> bytes:
    """The 16-byte form of a numeric address.  Raises OSError."""
    host = text.partition("%")[0]
    if ":" in host:
        return socket.inet_pton(socket.AF_INET6, host)
    return V4_PREFIX + socket.inet_pton(socket.AF_INET, host)


def to_text(addr: bytes) -> str:
    """The numeric address, v4-mapped ones as IPv4."""
    if is_v4(addr):
        return socket.inet_ntop(socket.AF_INET, addr[12:])
    return socket.inet_ntop(socket.AF_INET6, addr)


def endpoint(addr: bytes, port: int) -> str:
    """`address:port`, IPv6 in brackets."""
    text = to_text(addr)
    return f"[{text}]:{port}" if ":" in text else f"{text}:{port}"


def _parse(kind: int, payload: bytes) -> bytes | None:
    if kind != _RTM_NEWADDR or len(payload) < _IFADDRMSG.size:
        return None
    family = payload[0]
    values = dict(netlink.attributes(payload[_IFADDRMSG.size :]))
    # On a point-to-point interface IFA_ADDRESS is the far end; IFA_LOCAL is always ours where it is given.
    raw = values.get(_IFA_LOCAL, values.get(_IFA_ADDRESS, b""))
    if family == socket.AF_INET and len(raw) == 4:
        return V4_PREFIX + raw
    if family == socket.AF_INET6 and len(raw) == 16:
        return raw
    return None


def local_addresses(route: socket.socket) -> list[bytes]:
    """Every address that the namespace of a NETLINK_ROUTE socket has, 127.0.0.0/8 as 127.0.0.1 alone.

    Raises OSError when the kernel does not tell.
    """
    for attempt in range(_TRIES):
        try:
            answers = netlink.ask(route, _RTM_GETADDR, netlink.NLM_F_DUMP, bytes(_IFADDRMSG.size))
            break
        except OSError as error:
            if attempt == _TRIES - 1 or error.errno not in (errno.EAGAIN, errno.EBUSY, errno.ENOBUFS):
                raise
    found: dict[bytes, None] = {}
    for kind, payload in answers:
        addr = _parse(kind, payload)
        if addr is None:
            continue
        found[LOOPBACK_V4 if is_v4(addr) and addr[12] == 127 else addr] = None
    return list(found)


def reachable_as(bound: bytes, v6only: bool, local: list[bytes]) -> list[bytes]:
    """The addresses under which a socket bound to `bound` can be reached, given the namespace's own."""
    if bound == ANY_V4:
        return [a for a in local if is_v4(a)]
    if bound == ANY_V6:
        return [a for a in local if not (v6only and is_v4(a))]
    return [bound]
