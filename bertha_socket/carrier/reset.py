"""To end a TCP connection of which others have duplicates."""

from __future__ import annotations

import ctypes
import socket
import struct
from typing import Final

_libc: Final = ctypes.CDLL(None, use_errno=True)  # the socket module cannot dissolve an association
_UNSPEC: Final = struct.pack("=H14x", socket.AF_UNSPEC)


def reset(tcp: int) -> None:
    """Sends a reset, although the program's process has the socket open too."""
    _libc.connect(tcp, _UNSPEC, len(_UNSPEC))
