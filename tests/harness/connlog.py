"""Reading the connection log (BERTHA_CONNLOG) and saying what it must show.

A test of an end-to-end program has to prove *what carried the bytes*: without that, every test here would
pass just as well with the shim doing nothing.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_FIELDS = frozenset(
    {"time", "pid", "program", "role", "proto", "local", "peer", "chunnels", "plain", "reason", "tx_bytes"}
    | {"rx_bytes", "setup_us"}
)


@dataclass(frozen=True)
class Connection:
    """One line of the log."""

    pid: int
    program: str
    role: str
    local: str
    peer: str
    implementation: str
    plain: bool
    reason: str | None
    tx_bytes: int
    rx_bytes: int
    raw: dict[str, Any]

    @property
    def ends(self) -> tuple[str, str]:
        """(client's address, server's address), the same for both ends' lines."""
        return (self.local, self.peer) if self.role == "client" else (self.peer, self.local)

    @property
    def port(self) -> int:
        """The server's port."""
        return int(self.ends[1].rpartition(":")[2])


# What a host of a rehearsal (pytest --rehearse) has for a log: nothing is asserted of it.
REHEARSED: list[Connection] = []


def _parse(line: str) -> Connection:
    raw = json.loads(line)
    missing = _FIELDS - raw.keys()
    assert not missing, f"connection log line without {sorted(missing)}: {line}"
    implementations = [c["implementation"] for c in raw["chunnels"] if c["type"] == "local_or_remote"]
    return Connection(
        pid=raw["pid"],
        program=raw["program"],
        role=raw["role"],
        local=raw["local"],
        peer=raw["peer"],
        implementation="tcp" if raw["plain"] else (implementations or ["?"])[0],
        plain=raw["plain"],
        reason=raw["reason"],
        tx_bytes=raw["tx_bytes"],
        rx_bytes=raw["rx_bytes"],
        raw=raw,
    )


def read_connlog(path: Path) -> list[Connection]:
    """Every complete line of the log, in order; [] when there is no file (yet)."""
    if not path.exists():
        return []
    return [_parse(line) for line in path.read_text().split("\n")[:-1]]


def connections(
    log: Iterable[Connection],
    *,
    program: str | None = None,
    role: str | None = None,
    port: int | None = None,
    pid: int | None = None,
) -> list[Connection]:
    """The lines that match everything given."""
    return [
        c
        for c in log
        if program in (None, c.program)
        and role in (None, c.role)
        and port in (None, c.port)
        and pid in (None, c.pid)
    ]


def _listing(chosen: Sequence[Connection]) -> str:
    if not chosen:
        return "  (no line)"
    lines = [
        f"  {c.program}[{c.pid}] {c.role} {c.local} > {c.peer} {c.implementation}"
        f" tx={c.tx_bytes} rx={c.rx_bytes} reason={c.reason}"
        for c in chosen[:20]
    ]
    return "\n".join(lines + ([f"  ... {len(chosen) - 20} more"] if len(chosen) > 20 else []))


def assert_carried(
    log: Sequence[Connection],
    program: str,
    implementation: str = "shm",
    min_connections: int = 1,
    *,
    role: str | None = None,
    port: int | None = None,
) -> list[Connection]:
    """All lines of `program` (of that role, port) were carried by `implementation`; there are enough.

    Connections that never carried a byte do not count: there was nothing to negotiate with.
    """
    if log is REHEARSED:
        return []
    chosen = [c for c in connections(log, program=program, role=role, port=port) if c.tx_bytes or c.rx_bytes]
    what = f"{program} {role or 'either role'} port {port or 'any'}"
    assert len(chosen) >= min_connections, (
        f"{what}: {len(chosen)} connections in the log, expected {min_connections}; the whole log:\n"
        + _listing(log)
    )
    wrong = [c for c in chosen if c.implementation != implementation]
    summary = f"{what}: {len(wrong)} of {len(chosen)} not carried by {implementation}"
    assert not wrong, f"{summary}:\n" + _listing(wrong)
    return chosen


def assert_mostly_carried(
    log: Sequence[Connection],
    program: str,
    share: float,
    implementation: str = "shm",
    min_connections: int = 1,
    *,
    role: str | None = None,
    port: int | None = None,
) -> list[Connection]:
    """`share` of the lines of `program` at the least were carried by `implementation`, and each other one is
    plain with a reason: for programs some of whose connections may rightly stay plain."""
    if log is REHEARSED:
        return []
    chosen = [c for c in connections(log, program=program, role=role, port=port) if c.tx_bytes or c.rx_bytes]
    others = [c for c in chosen if c.implementation != implementation]
    what = f"{program} {role or 'either role'} port {port or 'any'}"
    assert len(chosen) >= min_connections, (
        f"{what}: {len(chosen)} connections, expected {min_connections}:\n" + _listing(log)
    )
    carried = len(chosen) - len(others)
    summary = f"{what}: {carried} of {len(chosen)} carried by {implementation}, expected {share:.0%}"
    assert carried >= share * len(chosen), f"{summary}:\n" + _listing(others)
    odd = [c for c in others if not (c.plain and c.reason)]
    assert not odd, f"{what}: neither {implementation} nor plain with a reason:\n" + _listing(odd)
    return chosen


def assert_plain(
    log: Sequence[Connection],
    program: str,
    min_connections: int = 1,
    *,
    role: str | None = None,
    port: int | None = None,
) -> list[Connection]:
    """All lines of `program` are plain, each with a reason."""
    chosen = assert_carried(log, program, "tcp", min_connections, role=role, port=port)
    silent = [c for c in chosen if not c.reason]
    assert not silent, "plain without a reason:\n" + _listing(silent)
    return chosen


def assert_balanced(log: Iterable[Connection], *, port: int | None = None, min_pairs: int = 1) -> None:
    """Both ends of every connection are in the log, agree on what carried it, and count the same bytes."""
    if log is REHEARSED:
        return
    ends: dict[tuple[str, str], dict[str, list[Connection]]] = defaultdict(
        lambda: {"client": [], "server": []}
    )
    for c in connections(log, port=port):
        ends[c.ends][c.role].append(c)
    pairs = 0
    for who, sides in ends.items():
        clients, servers = sides["client"], sides["server"]
        both = _listing(clients + servers)
        assert len(clients) == len(servers), f"{who}: lines of one end only:\n{both}"
        # A client's port may be used again within one test: the order of the lines keeps them apart.
        for client, server in zip(clients, servers, strict=True):
            pairs += 1
            if client.tx_bytes or server.tx_bytes:
                assert client.implementation == server.implementation, f"{who}: the ends disagree:\n{both}"
            assert client.tx_bytes == server.rx_bytes, f"{who}: client to server, bytes differ:\n{both}"
            assert server.tx_bytes == client.rx_bytes, f"{who}: server to client, bytes differ:\n{both}"
    assert pairs >= min_pairs, f"{pairs} connections with both ends in the log, expected {min_pairs}"
