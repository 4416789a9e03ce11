"""`bertha chunnels`: the chunnel types that are known here, how each can be run, and why not.

Probes are what the agent asks too; so what is usable here is what this user's agent would offer.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

from bertha_socket.chunnels import ChunnelType, Implementation, all_types
from bertha_socket.chunnels._types import REQUIRED
from bertha_socket.cli._table import clean

__all__ = ["described", "main", "why_not"]


def why_not(implementation: Implementation) -> str | None:
    """None: usable here; else why not."""
    try:
        return implementation.probe()
    except Exception as error:  # somebody else's code
        return f"its probe failed: {error}"


def _wires(kind: ChunnelType, implementation: Implementation) -> list[str]:
    try:
        return list(implementation.wires({p.name: p.default for p in kind.parameters}))
    except Exception:  # somebody else's code, which wants arguments that have no default
        return []


def described(kind: ChunnelType) -> dict[str, Any]:
    """A type as `--json` prints it."""
    return {
        "type": kind.name,
        "summary": kind.summary,
        "upper": kind.upper.value,
        "lower": kind.lower.value,
        "endpoints": kind.endpoints,
        "arguments": [
            {"name": p.name, "kind": p.kind, "required": p.default is REQUIRED, "summary": p.summary}
            for p in kind.parameters
        ],
        "implementations": [
            {
                "name": i.name,
                "wires": _wires(kind, i),
                "where": i.where,
                "endpoints": i.endpoints,
                "priority": i.priority,
                "carrier": i.carrier,
                "usable": (reason := why_not(i)) is None,
                "reason": reason,
            }
            for i in sorted(kind.implementations, key=lambda i: -i.priority)
        ],
    }


def _lines(found: Sequence[dict[str, Any]]) -> list[str]:
    lines = []
    for kind in found:
        arguments = ", ".join(a["name"] + ("" if a["required"] else "?") for a in kind["arguments"])
        lines.append(f"{kind['type']}({arguments})  {clean(kind['summary'])}")
        for i in kind["implementations"]:
            state = "usable" if i["usable"] else f"no: {clean(i['reason'])}"
            speaks = ", ".join(i["wires"]) or "none"
            lines.append(f"    {i['name']:<10} wire {speaks}; priority {i['priority']}; {state}")
    return lines


def main(argv: Sequence[str]) -> int:
    """Returns 0."""
    parser = argparse.ArgumentParser(
        prog="bertha chunnels",
        description="Chunnel types, their implementations, and whether they work here.",
    )
    parser.add_argument("--json", action="store_true", help="print an array of JSON objects")
    options = parser.parse_args(argv)
    found = [described(kind) for kind in all_types()]
    print(json.dumps(found, indent=2) if options.json else "\n".join(_lines(found)))
    return 0
