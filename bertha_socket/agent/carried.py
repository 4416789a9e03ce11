"""What a carrier says of a connection: the records of native/carrier/carrier.h, read for `bertha ps`.

Written by carriers into memory of the program's shim, so it is a claim and not the truth, and checked here.
"""

from __future__ import annotations

import json
import os
import struct
from enum import IntEnum
from typing import Any, Final, NamedTuple

from bertha_socket.reasons import Reason, text_of

#: struct bertha_carrier_status: state, life, chunnels, detail (and ended).
RECORD: Final = struct.Struct("=II616s396s4x")
BOTTOMS: Final = {
    "tcp": {"type": "local_or_remote", "implementation": "tcp", "where": "global"},
    "udp": {"type": "local_or_remote", "implementation": "udp", "where": "global"},
}
_KEYS: Final = ("type", "implementation", "where")
_CHUNNELS_MAX: Final = 64
_COUNTS_MAX: Final = 32


class State(IntEnum):
    """enum bertha_carrier_state."""

    PENDING = 0
    READY = 1
    REFUSED = 2
    RESET = 3
    PLAIN = 4
    RAISED = 5


_WHY: Final = {
    State.REFUSED: Reason.CHUNNEL_REFUSED,
    State.RESET: Reason.CHUNNEL_FAILED,
    State.RAISED: Reason.CHUNNEL_RAISED,
    State.PLAIN: Reason.PEER_UNAWARE,
}


class Carried(NamedTuple):
    """As the connection log has it."""

    chunnels: list[dict[str, Any]]
    plain: bool
    #: Why it is plain, or has ended.
    reason: str | None
    #: Of one that runs: what was left out of its plan, and of datagrams what was dropped.
    remark: str | None = None


def look(fd: int, index: int, proto: str = "tcp") -> Carried | None:
    """What is said of connection number `index`; None: nothing, or nothing that makes sense."""
    try:
        return parse(os.pread(fd, RECORD.size, index * RECORD.size), proto)
    except OSError:
        return None


def parse(data: bytes, proto: str = "tcp") -> Carried | None:
    """The record in these bytes; None as above."""
    if len(data) != RECORD.size:
        return None
    number, _, chunnels, detail = RECORD.unpack(data)
    try:
        state = State(number)
    except ValueError:
        return None
    if state == State.PENDING:
        return None
    upper = _chunnels(_text(chunnels)) if state in (State.READY, State.RESET, State.RAISED) else []
    why, remark = _WHY.get(state), _text(detail) or None
    reason = text_of(why) if why is not None else None
    if reason is not None and remark and state != State.PLAIN:
        reason, remark = f"{reason}: {remark}", None
    return Carried([*upper, BOTTOMS[proto]], state == State.PLAIN, reason, remark)


def _text(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode("utf-8", "replace")


def _chunnels(text: str) -> list[dict[str, Any]]:
    try:
        found: Any = json.loads(text)
    except (ValueError, RecursionError):
        return []
    if not isinstance(found, list) or len(found) > _CHUNNELS_MAX:
        return []
    if not all(isinstance(c, dict) and all(isinstance(c.get(k), str) for k in _KEYS) for c in found):
        return []
    return [{k: c[k] for k in _KEYS} | _counts(c.get("counts")) for c in found]


def _counts(said: Any) -> dict[str, dict[str, int]]:
    if not isinstance(said, dict) or not said or len(said) > _COUNTS_MAX:
        return {}
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in said.values()):
        return {}
    return {"counts": said}
