"""A look into the agent's directory of listeners, as a test's way to wait for a server without touching it.

A connection made to see whether a server is up would itself appear in the connection log, and a port that is
in LISTEN may not have been announced yet; the directory (native/core/layout.h) says when it has.
"""

from __future__ import annotations

import struct
from pathlib import Path

_HEADER = struct.Struct("=IIQII40x")
_ENTRY = struct.Struct("=IHH16sQQII16x")
_LISTEN = "0A"


def listed_ports(directory: Path) -> set[int]:
    """The ports that have a listener in the directory file; empty when there is no (valid) file."""
    try:
        data = directory.read_bytes()
    except OSError:
        return set()
    if len(data) < _HEADER.size:
        return set()
    entry_count = _HEADER.unpack_from(data)[4]
    end = min(len(data), _HEADER.size + entry_count * _ENTRY.size)
    return {
        port
        for _, port, _, _, _, listener, _, _ in _ENTRY.iter_unpack(
            data[_HEADER.size : end - (end - _HEADER.size) % _ENTRY.size]
        )
        if port and listener
    }


def agent_pid(directory: Path) -> int | None:
    """The process number of the agent that serves the directory file; None when there is none."""
    try:
        header = _HEADER.unpack_from(directory.read_bytes())
    except (OSError, struct.error):
        return None
    return int(header[3]) or None


def listening_ports(pid: int) -> set[int]:
    """TCP ports in LISTEN in the network namespace of `pid`, from the kernel's own table."""
    ports: set[int] = set()
    for family in ("tcp", "tcp6"):
        try:
            lines = Path(f"/proc/{pid}/net/{family}").read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == _LISTEN:
                ports.add(int(fields[1].rpartition(":")[2], 16))
    return ports
