"""Processes that are killed close nothing: what they had of tables and of links' slots comes back."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.harness import Host, assert_carried, connections, free_port
from tests.shim.conftest import Build

_HERE = Path(__file__).parent
#: More than a link has slots.
_COUNT = 1100
#: How many records may wait for their burial.
_LATE = 128


@pytest.mark.slow
def test_killed_children(host: Host, build: Build) -> None:
    port = free_port()
    server = host.server([build("killed"), port, _COUNT], port)
    assert host.run([build("killed"), "client", port, _COUNT], timeout=100) == "links 1\n"
    said = server.wait().split()
    assert said[0] == "used" and int(said[1]) <= _LATE
    log = host.finish()
    assert len(assert_carried(log, "killed", role="client")) == _COUNT
    buried = connections(log, program="killed", role="server")
    assert _COUNT - _LATE <= len(buried) <= _COUNT
    assert {c.raw["killed"] for c in buried} == {True}
    assert {(c.implementation, c.tx_bytes, c.rx_bytes) for c in buried} == {("shm", 4, 9)}
    assert len({c.pid for c in buried}) == len(buried)


def test_living_parent(host: Host) -> None:
    port = free_port()
    host.server([sys.executable, _HERE / "echo_all.py", port], port)
    assert host.run([sys.executable, _HERE / "left_living.py", port], timeout=60) == "well\n"
    log = host.finish()
    assert_carried(log, Path(sys.executable).name, role="client", min_connections=300)
    assert not any("killed" in c.raw for c in connections(log))
