"""A server in a namespace of its own, whose agent lives outside of it, and a client on another host."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.chunnels.test_redis import assert_through
from tests.conftest import MakeHost
from tests.harness import NamespaceTrio, eventually, free_port, require_program
from tests.harness.directory import listed_ports

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
    ping = [require_program("redis-cli"), "-h", address, "-p", str(port), "ping"]
    assert client.run(ping).strip() == "PONG"
    assert_through(client.finish(), "redis-cli", ["encrypt", "local_or_remote"])
    assert_through(outside.finish(), "redis-server", ["encrypt", "local_or_remote"])


# Answers every message with PONG: ADDRESS PORT.
_BY_NEW = """
import sys
import bertha_socket
for connection in bertha_socket.new("ponger", "encrypt()").listen((sys.argv[1], int(sys.argv[2]))):
    with connection:
        for data in connection:
            connection.send(b"+PONG\\r\\n")
"""


def test_agent_outside_of_an_application(
    netns: NamespaceTrio, make_host: MakeHost, cluster_key: Path
) -> None:
    """The same for one that runs its chunnels itself."""
    outside = make_host(cluster_key=cluster_key)
    client = make_host(netns=netns.client, cluster_key=cluster_key)
    port = free_port()
    address = netns.server.address
    server = outside.spawn([sys.executable, "-c", _BY_NEW, address, port], netns=netns.server, shim=False)
    outside.wait_port(server, port, listed=False)
    eventually(lambda: port in listed_ports(Path(f"{outside.agent_path}.dir")), "the listener")
    ping = [require_program("redis-cli"), "-h", address, "-p", str(port), "ping"]
    assert client.run(ping).strip() == "PONG"
    assert_through(client.finish(), "redis-cli", ["encrypt", "local_or_remote"])
    assert_through(outside.finish(), Path(sys.executable).name, ["encrypt", "local_or_remote"])
