"""Processes that are killed close nothing: what they had of the table and of a link's slots comes back."""

from __future__ import annotations

import pytest

from tests.harness import Host, assert_carried, connections, free_port
from tests.shim.conftest import Build

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
