"""A child is made while its parent's other threads are in the middle of something: it waits for none."""

from __future__ import annotations

from tests.conftest import MakeHost
from tests.harness import NamespaceTrio, assert_carried
from tests.shim.conftest import Build

_SECONDS = 4


def test_children_of_a_busy_parent(netns: NamespaceTrio, make_host: MakeHost, build: Build) -> None:
    """The client asks an agent about each destination, for its address is a private one."""
    host = make_host(netns=netns.client)
    said = host.run([build("fork_busy"), netns.server.address, _SECONDS], timeout=60)
    assert int(said.split()[0]) > 10
    assert_carried(host.finish(), "fork_busy", min_connections=2)
