"""The agent's view of live connections, as the commands use it."""

from __future__ import annotations

import sys
from typing import Any

from bertha_socket.agent import client, paths

__all__ = ["connections", "fail", "socket_path"]


def socket_path(given: str | None) -> str:
    """The agent that is asked: --agent, else the one that programs would use."""
    return given or paths.default_path()


def connections(path: str) -> list[dict[str, Any]]:
    """The objects of `bertha ps --json`.  Raises AgentError."""
    found = client.agent_status(path).get("connections")
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def fail(command: str, error: OSError) -> int:
    """Says that the agent could not be asked; the exit code."""
    print(f"bertha {command}: {error.strerror or error}", file=sys.stderr)
    return 1
