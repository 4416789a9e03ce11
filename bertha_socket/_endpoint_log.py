"""The connection log's lines about datagram endpoints, which the preload library does not see
(docs/users/connection-log.md)."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any, Final, NamedTuple

from bertha_socket import _door

__all__ = ["Line", "write"]

_BOTTOM: Final = {"type": "local_or_remote", "implementation": "udp", "where": "global"}


class Line(NamedTuple):
    """One end of what has ended."""

    role: str
    local: str
    peer: str
    #: A JSON array: what ran; "": nothing did.
    chunnels: str
    reason: str | None
    tx_bytes: int
    rx_bytes: int
    setup_us: int


def write(line: Line) -> None:
    """Adds it to BERTHA_CONNLOG, if there is one.  Raises nothing: a log is no reason to fail."""
    path = os.environ.get("BERTHA_CONNLOG")
    if not path or _door.disabled():
        return
    upper = json.loads(line.chunnels) if line.chunnels else []
    fields: dict[str, Any] = {
        "time": round(time.time(), 6),
        "pid": os.getpid(),
        "program": os.path.basename(sys.orig_argv[0]) if sys.orig_argv else "",
        "role": line.role,
        "proto": "udp",
        "local": line.local,
        "peer": line.peer,
        "chunnels": [*upper, _BOTTOM],
        "plain": not upper,
        "reason": line.reason,
        "tx_bytes": line.tx_bytes,
        "rx_bytes": line.rx_bytes,
        "setup_us": line.setup_us,
    }
    data = json.dumps(fields, separators=(",", ":")).encode() + b"\n"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY, 0o666)
    except OSError:
        return
    try:
        os.write(fd, data)
    except OSError:
        pass
    finally:
        os.close(fd)
