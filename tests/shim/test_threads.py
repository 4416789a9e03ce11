"""A descriptor that one thread closes, or shuts down, while another is blocked on it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.harness import Host, assert_carried, connections, free_port
from tests.shim.conftest import Build

_HERE = Path(__file__).parent
_TWO = _HERE / "two.py"


@pytest.mark.parametrize("way", ["close", "shutdown"])
def test_blocked_reader(host: Host, build: Build, way: str) -> None:
    port = free_port()
    server = host.server([build("threads"), port, way], port)
    host.run([sys.executable, _TWO, port, way])
    server.wait()
    assert_carried(host.finish(), Path(sys.executable).name, role="client", min_connections=1)


def test_blocked_sender(host: Host, build: Build) -> None:
    """The books of the connection that comes after it are not its own to write."""
    port, other = free_port(), free_port()
    host.server([sys.executable, _HERE / "echo_all.py", port], port)
    answer = host.run([build("closed_sender"), port, other])
    assert host.rehearse or answer == "in memory\n"
    assert_carried(host.finish(), "closed_sender", role="client", port=port)


_EXECS = 40


def test_exec_in_a_copy(host: Host, build: Build) -> None:
    port = free_port()
    host.server([build("exec_in_copy"), port], port)
    assert host.run([build("exec_in_copy"), port, _EXECS], timeout=120) == f"well {_EXECS}\n"
    lines = connections(host.finish(), role="client", port=port)
    assert host.rehearse or (lines and {c.implementation for c in lines} == {"shm"}), lines
