"""Network namespaces: containers of one host share memory, hosts do not, and equal addresses are no proof."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.conftest import MakeHost
from tests.harness import (
    Host,
    NamespaceTrio,
    assert_balanced,
    assert_carried,
    assert_plain,
    free_port,
    require_program,
)
from tests.programs.conftest import StartRedis

pytestmark = [pytest.mark.program, pytest.mark.net]

_CLIENTS = Path(__file__).parent / "clients"
_PYTHON = Path(sys.executable).name


def _benchmark(netns: NamespaceTrio, port: int) -> list[str]:
    words = ["-h", netns.server.address, "-p", str(port), "-c", "20", "-n", "4000", "-t", "set,get", "-q"]
    return [require_program("redis-benchmark"), *words]


def test_one_agent_two_namespaces(netns: NamespaceTrio, host: Host, start_redis: StartRedis) -> None:
    _, port = start_redis(host, netns=netns.server, address=netns.server.address)
    assert "SET" in host.run(_benchmark(netns, port), netns=netns.client)
    log = host.finish()
    assert_carried(log, "redis-benchmark", min_connections=20, role="client", port=port)
    assert_carried(log, "redis-server", min_connections=20, role="server", port=port)


def test_an_agent_each(netns: NamespaceTrio, make_host: MakeHost, start_redis: StartRedis) -> None:
    """Two agents are two hosts: plain, on both sides, with a reason."""
    serving, asking = make_host(), make_host()
    _, port = start_redis(serving, netns=netns.server, address=netns.server.address)
    assert "SET" in asking.run(_benchmark(netns, port), netns=netns.client)
    assert_plain(asking.finish(), "redis-benchmark", 20, role="client", port=port)
    assert_plain(serving.finish(), "redis-server", 20, role="server", port=port)


def _serve(netns_of: str, netns: NamespaceTrio, host: Host, port: int) -> None:
    space = netns.trap if netns_of == "trap" else netns.server
    command = [
        sys.executable,
        _CLIENTS / "exchange_server.py",
        "client-first",
        space.address,
        str(port),
    ]
    host.server(command, port, netns=space, label=netns_of)


def _ask(netns: NamespaceTrio, host: Host, port: int) -> None:
    words = ["client-first", netns.server.address, str(port), "50", "5", "2000", "3000"]
    command = [sys.executable, _CLIENTS / "exchange_client.py", *words]
    assert host.run(command, netns=netns.client).split()[-1] == "ok"


def test_trap_with_the_same_address_and_port(netns: NamespaceTrio, host: Host) -> None:
    """Two listeners, same address and port, of which the client can reach one: bytes go to that one."""
    port = free_port()
    _serve("trap", netns, host, port)
    _serve("server", netns, host, port)
    _ask(netns, host, port)
    log = host.finish()
    assert_carried(log, _PYTHON, min_connections=50, role="client", port=port)
    assert_balanced(log, port=port, min_pairs=50)


def test_only_the_trap_is_listed(netns: NamespaceTrio, host: Host) -> None:
    """The reachable server is plain; a shimmed one elsewhere has its address: the client must stay plain."""
    port = free_port()
    _serve("trap", netns, host, port)
    space = netns.server
    words = ["client-first", space.address, str(port)]
    command = [sys.executable, _CLIENTS / "exchange_server.py", *words]
    host.server(command, port, netns=space, label="server", shim=False)
    _ask(netns, host, port)
    log = host.finish()
    assert_plain(log, _PYTHON, 50, role="client", port=port)


def test_loopback_is_each_namespaces_own(netns: NamespaceTrio, host: Host, start_redis: StartRedis) -> None:
    """127.0.0.1 in another namespace is not reachable: refused, although the directory lists it."""
    _, port = start_redis(host, netns=netns.server)
    refused = host.run(
        [require_program("redis-cli"), "-p", str(port), "PING"], netns=netns.client, check=False
    )
    assert "Connection refused" in refused
    inside = host.run([require_program("redis-cli"), "-p", str(port), "PING"], netns=netns.server)
    assert inside.strip() == "PONG"
    log = host.finish()
    assert_carried(log, "redis-server", min_connections=1, role="server", port=port)


def test_wildcard_listener_across_namespaces(
    netns: NamespaceTrio, host: Host, start_redis: StartRedis
) -> None:
    _, port = start_redis(host, netns=netns.server, address="0.0.0.0")
    assert "SET" in host.run(_benchmark(netns, port), netns=netns.client)
    log = host.finish()
    assert_carried(log, "redis-benchmark", min_connections=20, role="client", port=port)
    assert_carried(log, "redis-server", min_connections=20, role="server", port=port)
