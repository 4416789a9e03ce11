"""Looking at descriptors that a client has passed: what they are, never trusting what they are said to be.

Nothing here reads from them or waits for them.
"""

from __future__ import annotations

import os
import socket
import sys
from typing import Final, NamedTuple

from bertha_socket.agent import addresses, netlink
from bertha_socket.agent.memory import netns_cookie

_SO_COOKIE: Final = 57
_SO_BINDTODEVICE: Final = 25
_SO_PEERPIDFD: Final = 77


class NotUsable(Exception):
    """A passed descriptor is not what it must be."""


class Listening(NamedTuple):
    """A listening TCP socket, or a bound UDP one: its address in 16-byte form, its namespace's and its own
    cookie."""

    addr: bytes
    port: int
    v6only: bool
    netns: int
    cookie: int
    #: "tcp" or "udp".
    proto: str = "tcp"


class Peer(NamedTuple):
    """Who is at the other end of a unix connection, in the agent's own view."""

    pid: int
    uid: int
    gid: int


def _option(sock: socket.socket, level: int, name: int) -> int:
    return sock.getsockopt(level, name)


def inspect_listening(fd: int) -> Listening:
    """Sees that `fd` is a listening TCP socket, or a bound UDP one, and where.  Does not take `fd` over.

    Raises NotUsable, also for one bound to a device: its address alone does not say who is reached.
    """
    sock: socket.socket | None = None
    try:
        sock = socket.socket(fileno=fd)
        protos = {socket.IPPROTO_TCP: "tcp", socket.IPPROTO_UDP: "udp"}
        proto = protos.get(_option(sock, socket.SOL_SOCKET, socket.SO_PROTOCOL))
        if sock.family not in (socket.AF_INET, socket.AF_INET6) or proto is None:
            raise NotUsable("neither a TCP nor a UDP socket")
        if proto == "tcp" and not _option(sock, socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise NotUsable("not listening")
        if sock.getsockopt(socket.SOL_SOCKET, _SO_BINDTODEVICE, 16).rstrip(b"\0"):
            raise NotUsable("bound to a device")
        name = sock.getsockname()
        addr = addresses.from_text(name[0])
        v6only = sock.family == socket.AF_INET6 and bool(
            _option(sock, socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        )
        cookie = int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, _SO_COOKIE, 8), sys.byteorder)
        netns = netns_cookie(fd)
        if not netns or not name[1]:
            raise NotUsable("its namespace or port is unknown")
        return Listening(addr, int(name[1]), v6only, netns, cookie, proto)
    except OSError as error:
        raise NotUsable(error.strerror or "not a socket") from error
    finally:
        if sock is not None:
            sock.detach()


def is_for_agents(fd: int, netns: int, proto: str, port: int) -> bool:
    """Whether `fd` listens on that port of all addresses of that namespace; of UDP: is bound to it."""
    try:
        found = inspect_listening(fd)
    except NotUsable:
        return False
    there = found.netns == netns and found.port == port and addresses.is_wildcard(found.addr)
    return there and found.proto == proto


def adopt_netlink(fd: int, protocol: int, netns: int) -> socket.socket:
    """Takes `fd` over as a netlink socket of that protocol and namespace.  Raises NotUsable (and then `fd`
    is still the caller's)."""
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise NotUsable("not a netlink socket") from error
    try:
        if (
            sock.family != socket.AF_NETLINK
            or _option(sock, socket.SOL_SOCKET, socket.SO_PROTOCOL) != protocol
            or netns_cookie(fd) != netns
        ):
            raise NotUsable("not a netlink socket of the listener's network namespace")
    except NotUsable:
        sock.detach()
        raise
    except OSError as error:
        sock.detach()
        raise NotUsable("not a netlink socket") from error
    return sock


def adopt_client(fd: int, netns: int, proto: str = "tcp") -> socket.socket:
    """Takes `fd` over as a TCP or UDP socket of that namespace that is not connected.  Raises NotUsable (and
    then `fd` is still the caller's)."""
    number = {"tcp": socket.IPPROTO_TCP, "udp": socket.IPPROTO_UDP}[proto]
    try:
        sock = socket.socket(fileno=fd)
    except OSError as error:
        raise NotUsable("not a socket") from error
    try:
        good = (
            sock.family in (socket.AF_INET, socket.AF_INET6)
            and _option(sock, socket.SOL_SOCKET, socket.SO_PROTOCOL) == number
            and not _option(sock, socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            and netns_cookie(fd) == netns
        )
        if good:
            try:
                sock.getpeername()
            except OSError:
                return sock
        raise NotUsable(f"not an unconnected {proto} socket of the caller's network namespace")
    except NotUsable:
        sock.detach()
        raise
    except OSError as error:
        sock.detach()
        raise NotUsable(f"not a {proto} socket") from error


def is_eventfd(fd: int) -> bool:
    """Whether `fd` is an eventfd that nobody can be made to wait at."""
    try:
        return os.readlink(f"/proc/self/fd/{fd}") == "anon_inode:[eventfd]" and not os.get_blocking(fd)
    except OSError:
        return False


def peer_of(sock: socket.socket) -> Peer:
    """SO_PEERCRED: as they were when it connected.  Raises OSError."""
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid, uid, gid = (int.from_bytes(raw[i : i + 4], sys.byteorder) for i in (0, 4, 8))
    return Peer(pid, uid, gid)


def peer_pidfd(sock: socket.socket) -> int | None:
    """A descriptor that becomes readable when the peer's process ends; None where the kernel (before 6.5)
    or the descriptor limit does not allow one."""
    try:
        fd = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError:
        return None
    os.set_inheritable(fd, False)
    return fd


# Both protocols are named here so that callers need one import.
ROUTE: Final = netlink.NETLINK_ROUTE
DIAG: Final = netlink.NETLINK_SOCK_DIAG
