"""Asking the kernel about a network namespace that the agent is not in, by a socket that is.

A shim hands over netlink sockets of its own namespace.  It still holds the same open sockets, so nothing
here waits: the kernel answers a request while it is sent, and an answer that is not there at once was
taken by somebody else.  An answer counts only when the kernel sent it and it bears our request's number.
pyroute2 was looked at: it opens its sockets itself, in a namespace it must enter first.
"""

from __future__ import annotations

import errno
import secrets
import socket
import struct
from collections.abc import Iterator
from typing import Final

NETLINK_ROUTE: Final = 0
NETLINK_SOCK_DIAG: Final = 4
NLM_F_REQUEST: Final = 0x001
NLM_F_DUMP: Final = 0x300
_NLM_F_DUMP_INTR: Final = 0x010
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_HEADER: Final = struct.Struct("=IHHII")
_BUFFER: Final = 65536
_MESSAGES_MAX: Final = 4096


def messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """The (type, flags, seq, payload) of each message in a datagram; ends at one that makes no sense."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, flags, seq, _ = _HEADER.unpack_from(data, at)
        if length < _HEADER.size or at + length > len(data):
            return
        yield kind, flags, seq, data[at + _HEADER.size : at + length]
        at += (length + 3) & ~3


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The (type, value) of each attribute; ends at one that makes no sense."""
    at = 0
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        if length < 4 or at + length > len(data):
            return
        yield kind & 0x3FFF, data[at + 4 : at + length]
        at += (length + 3) & ~3


def ask(sock: socket.socket, kind: int, flags: int, body: bytes) -> list[tuple[int, bytes]]:
    """Sends one request; returns the (type, payload) of its answers.

    Raises OSError: the kernel's own errno (ENOENT: no such socket), or EAGAIN when the answer is missing
    or was interrupted by a change.
    """
    seq = secrets.randbits(32) or 1
    request = _HEADER.pack(_HEADER.size + len(body), kind, NLM_F_REQUEST | flags, seq, 0) + body
    sock.sendto(request, socket.MSG_DONTWAIT, (0, 0))
    dump = bool(flags & NLM_F_DUMP)
    answers: list[tuple[int, bytes]] = []
    interrupted = others = False
    for _ in range(_MESSAGES_MAX):
        data, _, flags_in, sender = sock.recvmsg(_BUFFER, 0, socket.MSG_DONTWAIT)
        if flags_in & socket.MSG_TRUNC or not data:
            raise OSError(errno.EAGAIN, "a netlink answer was cut")
        if not isinstance(sender, tuple) or sender[0] != 0:
            continue  # not the kernel
        for kind_in, message_flags, seq_in, payload in messages(data):
            if seq_in != seq:
                others = True  # an old request's, or news of a change
                continue
            interrupted = interrupted or bool(message_flags & _NLM_F_DUMP_INTR)
            if kind_in == _NLMSG_ERROR:
                number = -struct.unpack_from("=i", payload)[0] if len(payload) >= 4 else errno.EPROTO
                if number:
                    raise OSError(number, "netlink request refused")
                return answers
            if kind_in == _NLMSG_DONE:
                if interrupted or others:
                    raise OSError(errno.EAGAIN, "a change came in between")
                return answers
            answers.append((kind_in, payload))
            if not dump:
                return answers
    raise OSError(errno.EAGAIN, "no end of netlink answers")
