"""poll, select and epoll answer for connections on rings as the kernel does for its own.

Each program (c/NAME.c) has both ends of its connections, checks every answer, and prints "ok". It runs
without the shim first: what it checks has to be what Linux does.
"""

from __future__ import annotations

import pytest

from tests.harness import Host, assert_carried
from tests.shim.conftest import Build


def _both_ways(host: Host, build: Build, name: str, *words: object, connections: int = 1) -> None:
    command = [build(name), *words]
    assert host.run(command, shim=False) == "ok\n"
    assert host.run(command, timeout=40) == "ok\n"
    log = host.finish()
    for role in ("client", "server"):
        assert_carried(log, name, role=role, min_connections=connections)


@pytest.mark.parametrize(("scene", "connections"), [("one", 2), ("many", 40), ("edges", 40)])
def test_more_is_ready_than_is_taken(host: Host, build: Build, scene: str, connections: int) -> None:
    """Nothing starves, the kernel's descriptors included: the next call goes on where the last stopped."""
    _both_ways(host, build, "fair", scene, connections=connections)
