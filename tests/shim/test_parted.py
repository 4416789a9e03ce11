"""A member that is taken out of an epoll set and put in again: its slot names the set meanwhile."""

from __future__ import annotations

import pytest

from tests.harness import Host, assert_balanced, assert_carried
from tests.shim.conftest import Build

_CONNECTIONS = {"asleep": 2, "closed": 6}


@pytest.mark.parametrize("scene", ["again", "asleep", "another", "copy", "closed", "child"])
def test_who_sleeps_is_woken(host: Host, build: Build, scene: str) -> None:
    assert host.run([build("parted"), scene], timeout=60) == "ok\n"
    log = host.finish()
    count = _CONNECTIONS.get(scene, 1)
    assert_carried(log, "parted", min_connections=2 * count)
    assert_balanced(log, min_pairs=count)
