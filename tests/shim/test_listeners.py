"""Programs that open a listener for each transfer, or meet many: nothing is left of those that are gone."""

from __future__ import annotations

import pytest

from bertha_socket.reasons import Reason, text_of
from tests.harness import Host, assert_balanced, assert_carried, connections
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


def test_listeners_of_threads_while_another_one_forks(host: Host, build: Build) -> None:
    """A child may have a socket and not the link that it is tied to: then it is not tied."""
    count = 400
    assert host.run([build("listeners"), "threads", count], timeout=60) == ""
    log = host.finish()
    assert_balanced(log, min_pairs=count)
    if not host.rehearse:
        reasons = {c.reason for c in connections(log, role="client")}
        assert reasons <= {None, text_of(Reason.INHERITED), text_of(Reason.NOT_ATTACHED)}
        assert sum(c.implementation == "shm" for c in log) > count  # of both ends' lines: more than a half


def test_listeners_that_are_made_after_the_fork(host: Host, build: Build) -> None:
    """What a process notes of a listener is its own: who shares the socket has to find out for itself."""
    count = 20
    assert host.run([build("listeners"), "late", count], timeout=60) == ""
    log = host.finish()
    assert_balanced(log, min_pairs=count)
    assert len(assert_carried(log, "listeners", role="server")) == count
