"""`bertha top`: live connections with their rates, busiest first, refreshed until q or Ctrl-C."""

from __future__ import annotations

import argparse
import json
import os
import select
import shutil
import sys
import termios
import time
import tty
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from bertha_socket.agent.client import AgentError
from bertha_socket.cli import _live, _table

__all__ = ["main"]

_ALTERNATE, _NORMAL = "\x1b[?1049h\x1b[?25l", "\x1b[?25h\x1b[?1049l"
_HOME, _CLEAR_LINE, _CLEAR_REST = "\x1b[H", "\x1b[K", "\x1b[J"

_Key = tuple[Any, ...]


def _key(connection: dict[str, Any]) -> _Key:
    return tuple(connection.get(name) for name in ("pid", "role", "local", "peer", "time"))


class Rates:
    """Bytes a second of each connection, from one look to the next."""

    def __init__(self) -> None:
        self._before: dict[_Key, tuple[int, int]] = {}
        self._when = 0.0

    def update(self, found: Sequence[dict[str, Any]], now: float) -> list[dict[str, Any]]:
        """`found` with tx_rate and rx_rate (bytes a second, None at first sight), busiest first."""
        passed = now - self._when
        rated: list[dict[str, Any]] = []
        current: dict[_Key, tuple[int, int]] = {}
        for connection in found:
            counts = (int(connection.get("tx_bytes") or 0), int(connection.get("rx_bytes") or 0))
            current[_key(connection)] = counts
            before = self._before.get(_key(connection))
            tx_rate = rx_rate = None
            if before is not None and passed > 0:
                tx_rate, rx_rate = ((new - old) / passed for new, old in zip(counts, before, strict=True))
            rated.append({**connection, "tx_rate": tx_rate, "rx_rate": rx_rate})
        self._before, self._when = current, now
        rated.sort(key=_table.sort_key)
        rated.sort(key=lambda each: -((each["tx_rate"] or 0) + (each["rx_rate"] or 0)))
        return rated


def _screen(rated: Sequence[dict[str, Any]], width: int, height: int) -> list[str]:
    carried: dict[str, int] = {}
    for each in rated:
        carried[_table.via(each)] = carried.get(_table.via(each), 0) + 1
    summary = ", ".join(f"{count} by {name}" for name, count in sorted(carried.items()))
    total = sum(each["tx_rate"] or 0 for each in rated)
    head = (
        f"bertha top - {len(rated)} connections ({summary or 'none'}), {_table.human(total)}B/s sent; q quits"
    )

    def rate(value: float | None) -> str:
        return "-" if value is None else _table.human(value)

    headings = (*_table.HEADINGS, "TX/s", "RX/s")
    rows = [
        [*_table.row_of(each), rate(each["tx_rate"]), rate(each["rx_rate"])] for each in rated[: height - 2]
    ]
    lines = _table.render(headings, rows, frozenset({"PID", "TX", "RX", "TX/s", "RX/s"}))
    return [line[:width] for line in (head, *lines)]


@contextmanager
def _terminal() -> Iterator[int]:
    """The terminal with keys read one by one, and as it was afterwards."""
    fd = sys.stdin.fileno()
    saved = termios.tcgetattr(fd)
    try:
        tty.setcbreak(fd)
        sys.stdout.write(_ALTERNATE)
        yield fd
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, saved)
        sys.stdout.write(_NORMAL)
        sys.stdout.flush()


def _wants_to_quit(fd: int, seconds: float) -> bool:
    ready, _, _ = select.select([fd], [], [], seconds)
    return bool(ready) and os.read(fd, 64)[:1] in (b"q", b"Q", b"")


def _watch(path: str, seconds: float) -> None:
    rates = Rates()
    with _terminal() as fd:
        while True:
            size = shutil.get_terminal_size()
            try:
                rated = rates.update(_live.connections(path), time.monotonic())
                lines = _screen(rated, size.columns, size.lines)
            except AgentError as error:  # it may come back
                lines = [f"bertha top - {error.strerror or error}"[: size.columns]]
            body = "\n".join(line + _CLEAR_LINE for line in lines[: size.lines])
            sys.stdout.write(_HOME + body + _CLEAR_REST)
            sys.stdout.flush()
            if _wants_to_quit(fd, seconds):
                return


def _seconds(text: str) -> float:
    value = float(text)
    if not 0.1 <= value <= 3600:
        raise ValueError
    return value


def main(argv: Sequence[str]) -> int:
    """Returns 0, or 1 when the agent could not be asked or there is no terminal."""
    parser = argparse.ArgumentParser(
        prog="bertha top", description="Live connections with their rates; q quits."
    )
    parser.add_argument(
        "--interval", type=_seconds, default=1.0, help="seconds between refreshes, 0.1 to 3600"
    )
    parser.add_argument(
        "--agent", metavar="SOCKET", help="ask this agent (default: $BERTHA_AGENT, or the user's)"
    )
    parser.add_argument(
        "--json", action="store_true", help="measure once over one interval and print a JSON array"
    )
    options = parser.parse_args(argv)
    path = _live.socket_path(options.agent)
    try:
        first = _live.connections(path)
        if options.json:
            rates = Rates()
            rates.update(first, time.monotonic())
            time.sleep(options.interval)
            json.dump(rates.update(_live.connections(path), time.monotonic()), sys.stdout, indent=2)
            print()
            return 0
    except AgentError as error:
        return _live.fail("top", error)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        print("bertha top: needs a terminal; 'bertha ps' or 'bertha top --json' print once", file=sys.stderr)
        return 1
    try:
        _watch(path, options.interval)
    except KeyboardInterrupt:
        pass
    return 0
