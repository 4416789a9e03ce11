"""`bertha ps [--json]`: live connections of programs under bertha-run, what carries each, and why.

The agent reads the tables that the programs share with it, so asking costs the programs nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

from bertha_socket.agent.client import AgentError, agent_status
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
    parser.add_argument(
        "--destinations",
        action="store_true",
        help="instead: what the agent remembers of other hosts and their agents, and its carriers",
    )
    return parser


def _names(value: object) -> list[object]:
    return value if isinstance(value, list) else []


def _destinations(agent: dict[str, Any]) -> list[str]:
    """The agent's memory as a table, and what else decides about other hosts."""
    rows = [
        [
            _table.clean(each.get("destination")),
            _table.clean(each.get("verdict")),
            " |> ".join(_table.clean(name) for name in _names(each.get("chunnels"))),
            _table.clean(each.get("seconds")),
            _table.clean(each.get("detail")),
        ]
        for each in _live.objects(agent.get("destinations"))
    ]
    lines = _table.render(("DESTINATION", "VERDICT", "CHUNNELS", "FOR", "WHY"), rows, frozenset({"FOR"}))
    for carrier in _live.objects(agent.get("carriers")):
        pid, kind, shims = (_table.clean(carrier.get(k)) for k in ("pid", "kind", "shims"))
        lines.append(f"carrier {pid}: {kind}, given to {shims} programs")
    port = agent.get("port")
    where = f"port {_table.clean(port)}" if port else f"no port ({_table.clean(agent.get('port_error'))})"
    key = agent.get("cluster_key")
    lines.append(f"other hosts' agents: {where}; cluster key: {_table.clean(key) if key else 'none'}")
    return lines


def _remarks(connection: dict[str, Any]) -> list[str]:
    """Why it is not better, and what its chunnels have counted."""
    found = [_table.clean(connection["reason"])] if connection.get("reason") else []
    for chunnel in connection.get("chunnels") or []:
        counts = chunnel.get("counts") if isinstance(chunnel, dict) else None
        if isinstance(counts, dict) and counts:
            words = [f"{name}={number}" for name, number in counts.items()]
            found.append(_table.clean(f"{chunnel.get('type')}: {' '.join(words)}"))
    return found


def _table_of(connections: Sequence[dict[str, Any]]) -> list[str]:
    headings = (*_table.HEADINGS, "WHY")
    rows = [[*_table.row_of(each), "; ".join(_remarks(each))] for each in connections]
    return _table.render(headings, rows, frozenset({"PID", "TX", "RX"}))


def _show_agent(agent: dict[str, Any], *, as_json: bool) -> int:
    if as_json:
        json.dump(agent, sys.stdout, indent=2)
        print()
    else:
        print("\n".join(_destinations(agent)))
    return 0


def main(argv: Sequence[str]) -> int:
    """Returns 0, or 1 when the agent could not be asked."""
    options = _parser().parse_args(argv)
    path = _live.socket_path(options.agent)
    try:
        if options.destinations:
            agent = agent_status(path).get("agent")
            return _show_agent(agent if isinstance(agent, dict) else {}, as_json=options.json)
        found = _live.connections(path)
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
