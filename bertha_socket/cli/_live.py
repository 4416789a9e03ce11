"""The agent's view of live connections, as the commands use it.

Root may ask another user's agent, which may say anything: what is not of the right type is as if it were not
there.
"""

from __future__ import annotations

import math
import sys
from typing import Any, Final

from bertha_socket.agent import client, paths

__all__ = ["connections", "fail", "objects", "socket_path"]

_TEXTS: Final = frozenset({"program", "role", "proto", "local", "peer", "reason"})
_NUMBERS: Final = frozenset({"pid", "tx_bytes", "rx_bytes", "setup_us"})


def socket_path(given: str | None) -> str:
    """The agent that is asked: --agent, else the one that programs would use."""
    return given or paths.default_path()


def connections(path: str) -> list[dict[str, Any]]:
    """The objects of `bertha ps --json`.  Raises AgentError."""
    return [_checked(each) for each in objects(client.agent_status(path).get("connections"))]


def objects(value: object) -> list[dict[str, Any]]:
    """The objects in what should be an array of them."""
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _checked(connection: dict[str, Any]) -> dict[str, Any]:
    found = dict(connection)
    for name in _TEXTS & found.keys():
        found[name] = found[name] if isinstance(found[name], str) else None
    for name in _NUMBERS & found.keys():
        found[name] = found[name] if isinstance(found[name], int) else 0
    when = found.get("time")
    if not isinstance(when, str | int | float) or (isinstance(when, float) and not math.isfinite(when)):
        found["time"] = None
    if "chunnels" in found:
        found["chunnels"] = objects(found["chunnels"])
    return found


def fail(command: str, error: OSError) -> int:
    """Says that the agent could not be asked; the exit code."""
    print(f"bertha {command}: {error.strerror or error}", file=sys.stderr)
    return 1
