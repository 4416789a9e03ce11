"""The agent: one process per host and user that brings shims together.  Started by `ensure_agent`."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """`bertha agent`: cli/agent.py, which is only loaded when it runs.  Returns the exit code."""
    from bertha_socket.cli.agent import main as command

    return command(argv)
