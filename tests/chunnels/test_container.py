"""A server in a namespace of its own, whose agent lives outside of it, and a client on another host."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chunnels.test_redis import assert_through
from tests.conftest import MakeHost
from tests.harness import NamespaceTrio, free_port, require_program

pytestmark = [pytest.mark.program, pytest.mark.net]


def test_agent_outside(netns: NamespaceTrio, make_host: MakeHost, cluster_key: Path) -> None:
    """The server hands its agent a socket that listens where the client's agent asks."""
    outside = make_host(cluster_key=cluster_key)
    client = make_host(netns=netns.client, cluster_key=cluster_key)
    outside.set_policy('[[rule]]\nside = "server"\ndag = "encrypt()"\n')
    port = free_port()
    address = netns.server.address
    command = [require_program("redis-server"), "--port", str(port), "--bind", address]
    command += ["--dir", str(outside.dir), "--save", "", "--protected-mode", "no"]
    outside.server(command, port, netns=netns.server)
    assert (
        client.run([require_program("redis-cli"), "-h", address, "-p", str(port), "ping"]).strip() == "PONG"
    )
    assert_through(client.finish(), "redis-cli", ["encrypt", "local_or_remote"])
    assert_through(outside.finish(), "redis-server", ["encrypt", "local_or_remote"])
