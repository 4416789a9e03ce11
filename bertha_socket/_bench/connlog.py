"""Proof of what carried the bytes: the connection log (``BERTHA_CONNLOG``), one JSON object a line.

A figure that is labelled shm must have been shm.  The log is the shim's own word for each connection, written
when it closes.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertha_socket.reasons import Reason, text_of

PLAIN = "plain"
UNUSED = "unused"
#: Plain by the shim's own choice: connections to that listener, or processes like that, are over after one
#: exchange.
BRIEF = "brief"
_BRIEF = frozenset({text_of(Reason.BRIEF), text_of(Reason.BRIEF_PROCESS)})


@dataclass(frozen=True)
class Connection:
    """One line of the log, as far as a measurement needs it."""

    role: str
    implementation: str  # "shm", "unix", "plain", "brief", or the chunnels above: "compress+encrypt"
    reason: str | None
    tx_bytes: int
    rx_bytes: int
    setup_us: float

    @classmethod
    def parse(cls, line: str) -> Connection:
        entry: dict[str, Any] = json.loads(line)
        implementation = PLAIN
        if not entry["plain"]:
            upper = [c["type"] for c in entry["chunnels"] if c["type"] != "local_or_remote"]
            lower = [c["implementation"] for c in entry["chunnels"] if c["type"] == "local_or_remote"]
            implementation = "+".join(upper) or (lower or [PLAIN])[0]
        if implementation == "tcp":
            implementation = PLAIN
        if implementation == PLAIN and entry.get("reason") in _BRIEF:
            implementation = BRIEF
        return cls(
            role=entry["role"],
            implementation=implementation,
            reason=entry.get("reason"),
            tx_bytes=entry.get("tx_bytes") or 0,
            rx_bytes=entry.get("rx_bytes") or 0,
            setup_us=entry.get("setup_us") or 0,
        )


def read(path: Path, role: str | None = None) -> list[Connection]:
    """The closed connections in a log, of one role or of both; no file means none."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    found = [Connection.parse(line) for line in lines if line.strip()]
    return [c for c in found if role is None or c.role == role]


def _unused(connection: Connection) -> bool:
    """Nothing was sent in either direction before it ended, so neither end had cause to tie it."""
    nothing = connection.tx_bytes == 0 and connection.rx_bytes == 0
    return nothing and connection.reason == text_of(Reason.NOT_ATTACHED)


def carried(connections: list[Connection]) -> Counter[str]:
    """How many connections each implementation carried; "unused" ended before they carried anything."""
    return Counter(UNUSED if _unused(c) else c.implementation for c in connections)


def objection(connections: list[Connection], expected: str, unused: bool = False) -> str | None:
    """Why these connections may not be called ``expected``; None when every one of them was.

    ``shm|brief`` allows either, where it is the shim that chooses; some must be the first of the two.

    One that was negotiated and then ended before it carried a byte (wrk opens one to see whether it can) is
    neither for nor against; with ``unused`` such ones are enough.
    """
    used = [c for c in connections if not _unused(c)]
    if not (connections if unused else used):
        return f"the connection log is empty, so nothing shows that {expected} carried anything"
    first, *others = expected.split("|")
    wrong = Counter((c.implementation, c.reason) for c in used if c.implementation not in (first, *others))
    if not wrong:
        proved = not others or unused or any(c.implementation == first for c in used)
        return None if proved else f"none was {first}"
    parts = [f"{n} of {len(used)} {what} ({why or 'no reason given'})" for (what, why), n in wrong.items()]
    return f"expected {expected} for every connection, but the log says: " + "; ".join(parts)
