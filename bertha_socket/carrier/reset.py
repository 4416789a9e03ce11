"""To end a TCP connection of which others have duplicates, in order or by a reset."""

from __future__ import annotations

import contextlib
import ctypes
import socket
import struct
from typing import Final

_libc: Final = ctypes.CDLL(None, use_errno=True)  # the socket module cannot dissolve an association
_NO_LINGER: Final = struct.pack("ii", 0, 0)
_UNSPEC: Final = struct.pack("=H14x", socket.AF_UNSPEC)


def reset(tcp: int) -> None:
    """Sends a reset, although the program's process has the socket open too."""
    _libc.connect(tcp, _UNSPEC, len(_UNSPEC))


def end(tcp: socket.socket) -> None:
    """Sends a FIN.  Until now any close would have been a reset (`core/guard.c`)."""
    with contextlib.suppress(OSError):
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        tcp.shutdown(socket.SHUT_WR)
