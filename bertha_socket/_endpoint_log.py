"""The connection log's lines about what the preload library does not see: datagram endpoints, and endpoints'
connections that may not be (docs/users/connection-log.md)."""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any, Final, NamedTuple

from bertha_socket import _door
from bertha_socket.reasons import Reason, text_of

__all__ = ["Line", "note_refusal", "refused", "write"]

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
    proto: str = "udp"
    #: There is no connection.
    refused: bool = False


def refused(proto: str, address: tuple[str, int], why: str) -> None:
    """Adds the line of a client's connection to `address` (numeric) that is not made."""
    host, port = address
    text, nowhere = (f"[{host}]:{port}", "[::]:0") if ":" in host else (f"{host}:{port}", "0.0.0.0:0")
    write(Line("client", nowhere, text, "", _reason(why), 0, 0, 0, proto, refused=True))


def note_refusal(fd: int, why: str) -> None:
    """Puts into a connection's own line why its ends do not agree."""
    _door.name_chunnels(fd, "[]", _reason(why))


def _reason(why: str) -> str:
    return f"{text_of(Reason.CHUNNEL_REFUSED)}: {why}"


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
        "proto": line.proto,
        "local": line.local,
        "peer": line.peer,
        "chunnels": [] if line.refused else [*upper, _BOTTOM],
        "plain": not (upper or line.refused),
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
