"""Servers of several processes: fork, daemon(3), a shell; each with its connections on shared memory."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.harness import Host, assert_balanced, assert_carried, assert_mostly_carried, eventually, free_port
from tests.harness.directory import listed_ports
from tests.shim.conftest import Build

_LINES = Path(__file__).parent / "lines.py"


@pytest.mark.parametrize(
    ("way", "connections"),
    [
        ("children", 3),
        ("late", 3),
        ("turns", 1),
        ("daemon", 3),
        ("second_life", 3),
        ("helpers", 1),
        ("shell", 1),
    ],
)
def test_processes(host: Host, build: Build, way: str, connections: int) -> None:
    port = free_port()
    words = ["one", "two", "three", "four", "five", "six"]
    count = len(words) if way == "turns" else connections
    host.spawn([build("forker"), port, way, count])
    directory = Path(f"{host.agent_path}.dir")
    if not host.rehearse:
        eventually(lambda: port in listed_ports(directory), "the server in the directory")
    calls = [word for _ in range(connections) for word in [*words, "--"]]
    assert host.run([sys.executable, _LINES, port, *calls[:-1]]) == "ok\n"
    eventually(lambda: host.rehearse or len(host.connlog()) == 2 * connections, "both ends in the log")
    log = host.finish()
    assert_balanced(log, min_pairs=connections)
    if way == "late":  # what two processes have before it is tied stays plain
        assert_mostly_carried(log, "forker", 0, min_connections=connections, role="server")
    else:
        assert_carried(log, Path(sys.executable).name, min_connections=connections, role="client")
