"""The agent: one process per host and user that brings shims together.  Started by `ensure_agent`."""

from __future__ import annotations

from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """`bertha agent`; see main.py, which is only loaded when it runs."""
    from bertha_socket.agent.main import main as run

    return run(argv)
