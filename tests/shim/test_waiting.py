"""Threads that wait: none sleeps over what comes, and those that are idle cost nothing.

As in test_readiness.py, each program runs without the shim first, checks every answer, and prints "ok".
"""

from __future__ import annotations

import pytest

from tests.harness import Host, assert_carried
from tests.shim.conftest import Build

_NO_SPIN = {"BERTHA_SPIN_US": "0"}


def _both_ways(
    host: Host, build: Build, name: str, *words: object, connections: int = 1, spin: bool = True
) -> None:
    command = [build(name), *words]
    assert host.run(command, shim=False, timeout=60) == "ok\n"
    assert host.run(command, timeout=40, env=None if spin else _NO_SPIN) == "ok\n"
    log = host.finish()
    for role in ("client", "server"):
        assert_carried(log, name, role=role, min_connections=connections)


def test_poll_over_many_links(host: Host, build: Build) -> None:
    """A thread that sleeps on more than 240 links had given up some of them while it took others."""
    _both_ways(host, build, "many_links", 260, connections=260)


def test_tied_between_look_and_sleep(host: Host, build: Build) -> None:
    _both_ways(host, build, "tied_meanwhile")


@pytest.mark.parametrize(("scene", "connections"), [("own", 280), ("shared", 1), ("bells", 100)])
def test_idle_threads(host: Host, build: Build, scene: str, connections: int) -> None:
    """More threads than a link has entries for sleepers; several on one connection; few descriptors."""
    _both_ways(host, build, "idle", scene, connections=connections, spin=False)


@pytest.mark.parametrize("scene", ["left", "let-in", "handler"])
def test_signals(host: Host, build: Build, scene: str) -> None:
    _both_ways(host, build, "let_in", scene)
