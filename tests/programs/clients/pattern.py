"""The bytes that the tests' own programs exchange: any shift, loss or repetition shows."""

from __future__ import annotations

import hashlib
import socket

_BLOCK = b"".join(hashlib.sha256(b"%d" % n).digest() for n in range(2053))  # 65696 bytes: no power of two


def pattern(seed: int, size: int) -> bytes:
    """`size` bytes that depend on `seed` in every block."""
    head = hashlib.sha256(b"seed %d" % seed).digest()
    period = head + _BLOCK
    return (period * (size // len(period) + 1))[:size]


def read_exactly(sock: socket.socket, size: int, piece: int = 65536) -> bytes:
    """`size` bytes from a blocking socket; EOFError when the peer ends before."""
    parts: list[bytes] = []
    while size:
        part = sock.recv(min(size, piece))
        if not part:
            raise EOFError(f"{size} bytes missing")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
