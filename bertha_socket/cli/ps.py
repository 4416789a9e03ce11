"""`bertha ps [--json]`: live connections of programs under bertha-run, what carries each, and why.

The agent reads the tables that the programs share with it, so asking costs the programs nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from bertha_socket.agent.client import AgentError
from bertha_socket.cli import _live, _table

__all__ = ["main"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bertha ps",
        description="Live connections of programs under bertha-run: what carries each, and why.",
        epilog="WHY says why a connection is plain TCP, or not on a better implementation.",
    )
    parser.add_argument(
        "--json", action="store_true", help="print a JSON array; keys as in the connection log"
    )
    parser.add_argument(
        "--agent", metavar="SOCKET", help="ask this agent (default: $BERTHA_AGENT, or the user's)"
    )
    parser.add_argument("--pid", type=int, action="append", help="only this process (may be repeated)")
    parser.add_argument("--plain", action="store_true", help="only connections that are plain TCP")
    return parser


def _table_of(connections: Sequence[dict[str, Any]]) -> list[str]:
    headings = (*_table.HEADINGS, "WHY")
    rows = [[*_table.row_of(each), _table.clean(each.get("reason"))] for each in connections]
    return _table.render(headings, rows, frozenset({"PID", "TX", "RX"}))


def main(argv: Sequence[str]) -> int:
    """Returns 0, or 1 when the agent could not be asked."""
    options = _parser().parse_args(argv)
    try:
        found = _live.connections(_live.socket_path(options.agent))
    except AgentError as error:
        return _live.fail("ps", error)
    if options.pid:
        found = [each for each in found if each.get("pid") in options.pid]
    if options.plain:
        found = [each for each in found if each.get("plain")]
    found.sort(key=_table.sort_key)
    if options.json:
        json.dump(found, sys.stdout, indent=2)
        print()
    else:
        print("\n".join(_table_of(found)))
    return 0
