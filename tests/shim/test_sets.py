"""One connection in several epoll sets: each is told of it as if it were the only one.

The program has both ends, checks every answer, and runs without the shim first (see test_readiness.py).
"""

from __future__ import annotations

import pytest

from tests.harness import Host, assert_carried
from tests.shim.conftest import Build

_TOLD = ["levels", "edges", "one-shot", "many", "duplicate", "end", "reset"]
_WAITING = ["both-asleep", "takers", "takers-by-edges", "takers-exclusive", "changing", "space"]


@pytest.mark.parametrize("scene", [*_TOLD, *_WAITING, "child", "second-life"])
def test_in_several_sets(host: Host, build: Build, scene: str) -> None:
    command = [build("sets"), scene]
    assert host.run(command, shim=False) == "ok\n"
    assert host.run(command, timeout=60) == "ok\n"
    log = host.finish()
    for role in ("client", "server"):
        assert_carried(log, "sets", role=role, min_connections=1)
