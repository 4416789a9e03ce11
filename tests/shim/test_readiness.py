"""poll, select and epoll answer for connections on rings as the kernel does for its own.

Each program (c/NAME.c) has both ends of its connections, checks every answer, and prints "ok". It runs
without the shim first: what it checks has to be what Linux does.
"""

from __future__ import annotations

import sys
from pathlib import Path

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


_MEMBERS = ["set-first", "members-first", "thread", "duplicate"]
_DATA = ["data-first", "data-before-watch", "left-and-back", "two-sets"]


@pytest.mark.parametrize("scene", [*_MEMBERS, *_DATA])
def test_a_set_that_is_watched(host: Host, build: Build, scene: str) -> None:
    """By another set, or by poll: only the kernel can tell those, whoever came first."""
    _both_ways(host, build, "nested", scene)


_FIRED = ["reset-after-it-fired", "out-after-it-fired"]
_EARLIER = ["later", "cut-short", "ended-earlier", "added-at-its-end", "fired-earlier", *_FIRED]


@pytest.mark.parametrize("way", ["poll", "select", "set", "duplicate"])
@pytest.mark.parametrize("scene", ["input", "asleep", "space", "both", *_EARLIER])
def test_edges_of_a_set_that_is_watched(host: Host, build: Build, scene: str, way: str) -> None:
    """Each message is an edge, whatever is left unread; so is room."""
    _both_ways(host, build, "watched_edges", scene, way)


def test_a_watched_set_from_before_the_shim(host: Host) -> None:
    assert host.run([sys.executable, Path(__file__).parent / "late_nested.py"], shim=False) == "ok\n"
    assert_carried(host.finish(), Path(sys.executable).name, min_connections=2)


@pytest.mark.parametrize("scene", ["closed", "exclusive"])
def test_members_of_a_set(host: Host, build: Build, scene: str) -> None:
    _both_ways(host, build, "members", scene)
