"""Connections as a table: shared by `bertha ps` and `bertha top`.

What is shown comes from other processes by way of the agent, so text is stripped of control characters: a
program's name must not be able to drive a terminal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["clean", "human", "render", "row_of", "sort_key", "via"]

_UNITS = ("", "K", "M", "G", "T", "P")

HEADINGS = ("PID", "PROGRAM", "ROLE", "LOCAL", "PEER", "VIA", "TX", "RX")


def clean(value: object) -> str:
    """One line without control characters."""
    text = "" if value is None else str(value)
    return "".join(char if char.isprintable() else "?" for char in text)


def human(count: float) -> str:
    """Bytes in three digits and a unit of 1024."""
    for unit in _UNITS:
        if count < 1000 or unit == _UNITS[-1]:
            return f"{count:.0f}{unit}" if not unit or count >= 9.95 else f"{count:.1f}{unit}"
        count /= 1024
    raise AssertionError("unreachable")


def _number(value: object) -> int:
    return value if isinstance(value, int) else 0


def via(connection: Mapping[str, Any]) -> str:
    """What carries the bytes: chunnels from the program downwards, then `shm`, `unix`, `tcp` or `udp`."""
    if connection.get("plain", True):
        return "udp" if connection.get("proto") == "udp" else "tcp"
    names = [
        clean(chunnel.get("implementation" if chunnel.get("type") == "local_or_remote" else "type"))
        for chunnel in connection.get("chunnels") or []
        if isinstance(chunnel, dict)
    ]
    return "+".join(name for name in names if name) or "?"


def sort_key(connection: Mapping[str, Any]) -> tuple[str, int, str, str]:
    """By program, process, and addresses: a row keeps its place from one refresh to the next."""
    return (
        str(connection.get("program")),
        _number(connection.get("pid")),
        str(connection.get("local")),
        str(connection.get("peer")),
    )


def row_of(connection: Mapping[str, Any]) -> list[str]:
    """The cells under HEADINGS."""
    texts = [clean(connection.get(key)) for key in ("pid", "program", "role")]
    # The program has not asked for it yet, and so nobody has.
    texts += [
        "?" if connection.get(key) == "[::]:0" else clean(connection.get(key)) for key in ("local", "peer")
    ]
    return [
        *texts,
        via(connection),
        human(_number(connection.get("tx_bytes"))),
        human(_number(connection.get("rx_bytes"))),
    ]


def render(headings: Sequence[str], rows: Iterable[Sequence[str]], right: frozenset[str]) -> list[str]:
    """Aligned lines, the headings first; the columns named in `right` are flush right."""
    table = [list(headings), *(list(row) for row in rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(headings))]
    lines = []
    for row in table:
        cells = [
            cell.rjust(width) if heading in right else cell.ljust(width)
            for cell, width, heading in zip(row, widths, headings, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    return lines
