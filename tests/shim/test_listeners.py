"""Programs that open a listener for each transfer, or meet many: nothing is left of those that are gone."""

from __future__ import annotations

import pytest

from tests.harness import Host, assert_balanced, assert_carried
from tests.shim.conftest import Build

_COUNT = 100


@pytest.mark.parametrize("way", ["poll", "epoll", "same", "kept", "living"])
def test_listeners_come_and_go(host: Host, build: Build, way: str) -> None:
    said = host.run([build("listeners"), way, str(_COUNT)], timeout=60)
    who = {"same": ["both"], "living": []}.get(way, ["client", "server"])
    assert sorted(said.splitlines()) == [f"{name}: no more than before" for name in who]
    log = host.finish()
    assert_balanced(log, min_pairs=_COUNT)
    for role in ("client", "server"):
        assert len(assert_carried(log, "listeners", role=role)) == _COUNT
