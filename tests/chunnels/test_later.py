"""Programs that run already when the listener, or its host's agent, comes: they need not wait for minutes."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.chunnels.conftest import Pair, StartRedis
from tests.conftest import MakeHost
from tests.harness import Host, NamespaceTrio, connections, eventually, free_port, require_program

pytestmark = pytest.mark.program

_PYTHON = Path(sys.executable).name
_ASKER = """
import socket, sys
for line in sys.stdin:
    try:
        with socket.create_connection((sys.argv[1], int(sys.argv[2])), 5) as sock:
            sock.sendall(b"PING\\r\\n")
            said = sock.recv(100).decode().strip() or "nothing"
    except OSError as error:
        said = type(error).__name__
    print(said, flush=True)
"""


class Asker:
    """A client that makes a connection whenever it is told to."""

    def __init__(self, host: Host, address: str, port: int) -> None:
        reader, self._feed = os.pipe()
        with open(reader, "rb") as source:
            self.program = host.spawn([sys.executable, "-u", "-c", _ASKER, address, port], stdin=source)
        self._count = 0

    def ask(self) -> str:
        os.write(self._feed, b"now\n")
        self._count += 1
        eventually(lambda: len(self.program.text().splitlines()) >= self._count, "an answer", 30)
        return self.program.text().splitlines()[-1]

    def end(self) -> None:
        os.close(self._feed)
        self.program.wait(20)


def _answered_last(host: Host) -> list[str]:
    """What carried the one connection that had an answer."""
    (found,) = [c for c in connections(host.finish(), program=_PYTHON) if c.rx_bytes]
    return [c["type"] for c in found.raw["chunnels"]]


def start_redis_at(host: Host, address: str, port: int) -> None:
    """At a port that was chosen before."""
    command = [require_program("redis-server"), "--port", port, "--bind", address, "--dir", host.dir]
    program = host.spawn([*command, "--save", "", "--protected-mode", "no"])
    host.wait_port(program, port)


@pytest.mark.net
@pytest.mark.parametrize("requires", [False, True], ids=["dictated", "required"])
def test_the_other_host_comes_later(netns: NamespaceTrio, make_host: MakeHost, requires: bool) -> None:
    client = make_host(netns=netns.client)
    server = make_host(netns=netns.server, agent=False)
    server.set_policy('[[rule]]\nside = "server"\ndag = "compress()"\n')
    if requires:
        client.set_policy('[[rule]]\nside = "client"\ndag = "compress()"\n')
    port = free_port()
    asker = Asker(client, netns.server.address, port)
    assert asker.ask() == "ConnectionRefusedError"
    server.start_agent()
    start_redis_at(server, netns.server.address, port)
    eventually(lambda: asker.ask() == "+PONG", "a connection by the chunnel", 20)
    asker.end()
    assert _answered_last(client) == ["compress", "local_or_remote"]


def test_who_requires_and_is_there_first(make_host: MakeHost) -> None:
    host = make_host()
    host.set_policy('[[rule]]\nside = "any"\ndag = "compress()"\n')
    port = free_port()
    asker = Asker(host, "127.0.0.1", port)
    assert asker.ask() == "ConnectionRefusedError"
    start_redis_at(host, "127.0.0.1", port)
    eventually(lambda: asker.ask() == "+PONG", "a connection by the chunnel", 20)
    asker.end()
    assert _answered_last(host) == ["compress", "local_or_remote"]


@pytest.mark.net
def test_a_listener_of_this_host_is_news(netns: NamespaceTrio, make_host: MakeHost) -> None:
    """Though the agent has said of its address, for a minute, that there is nobody to ask."""
    host = make_host(netns=netns.server, agent=False)
    host.start_agent(under=["env", "BERTHA_AGENT_PEERS=none"])
    host.set_policy('[[rule]]\nside = "server"\ndag = "compress()"\n')
    port = free_port()
    asker = Asker(host, netns.server.address, port)
    assert asker.ask() == "ConnectionRefusedError"
    start_redis_at(host, netns.server.address, port)
    assert asker.ask() == "+PONG", "at once"
    asker.end()
    assert _answered_last(host) == ["compress", "local_or_remote"]


@pytest.mark.net
def test_an_agent_that_was_killed(pair: Pair, start_redis: StartRedis) -> None:
    """The client's agent asks in vain meanwhile; plain ones are refused, and none after some seconds."""
    pair.dictate("compress()")
    _, port = start_redis(pair.server, pair.address)
    assert pair.server.agent is not None and pair.client.agent is not None
    for host in (pair.server, pair.client):  # what it knew goes as well
        assert host.agent is not None
        host.agent.process.kill()
        host.agent.process.wait(10)
    pair.client.start_agent()
    asker = Asker(pair.client, pair.address, port)
    assert asker.ask() != "+PONG"
    pair.server.start_agent()
    eventually(lambda: asker.ask() == "+PONG", "a connection by the chunnel", 20)
    asker.end()
    assert _answered_last(pair.client) == ["compress", "local_or_remote"]
