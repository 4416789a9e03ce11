"""A socket that loses a part of what comes to it: a classic BPF filter with the kernel's random numbers.

For kernels without netem, and for users without rights.
"""

from __future__ import annotations

import ctypes
import socket
import struct

_SO_ATTACH_FILTER = 26
_LD_W_ABS, _JGE_K, _RET_K = 0x20, 0x35, 0x06
_RANDOM = 0xFFFFF000 + 56  # SKF_AD_OFF + SKF_AD_RANDOM


def lose(sock: socket.socket, share: float) -> None:
    """From now on, that share of the datagrams that come is lost."""
    code = [
        (_LD_W_ABS, 0, 0, _RANDOM),
        (_JGE_K, 1, 0, int(share * 0xFFFFFFFF)),
        (_RET_K, 0, 0, 0),
        (_RET_K, 0, 0, 0x40000),
    ]
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *line) for line in code))
    sock.setsockopt(
        socket.SOL_SOCKET, _SO_ATTACH_FILTER, struct.pack("@HP", len(code), ctypes.addressof(program))
    )
