"""A policy's `spin_us` holds for connections with chunnels, too.

How long anybody spins is not measured: the connection log says what each connection's bound is, and
native/tests/test_carriers.c tests what threads and carriers make of it.
"""

from __future__ import annotations

import sys

import pytest

from tests.chunnels.conftest import Pair
from tests.harness import Connection, Host, free_port

_SERVER = """
import socket, sys
listeners = [socket.create_server((sys.argv[1], int(port))) for port in sys.argv[2:]]
for listener in listeners:
    connection = listener.accept()[0]
    connection.sendall(connection.recv(100))
    connection.close()
"""
_CLIENT = """
import socket, sys
found = [socket.create_connection((sys.argv[1], int(port))) for port in sys.argv[2:]]
for connection in found:
    connection.sendall(b"hello")
    assert connection.recv(100) == b"hello"
    connection.close()
"""


def _talk(server: Host, client: Host, address: str, ports: list[int]) -> None:
    """One connection to each port, between two processes."""
    serving = server.spawn([sys.executable, "-c", _SERVER, address, *ports])
    for port in ports:
        server.wait_port(serving, port, listed=True)
    client.run([sys.executable, "-c", _CLIENT, address, *ports], timeout=60)
    serving.wait(30)


def _bounds(log: list[Connection], role: str, carrier: str = "native") -> dict[int, int | None]:
    """By the server's port."""
    chosen = [c for c in log if c.role == role and c.rx_bytes > 0]
    for c in chosen:
        assert (c.raw["carrier"], c.raw["carried_by"]) == ("ring", carrier), c.raw
    return {c.port: c.raw.get("spin_us") for c in chosen}


def test_on_one_host(host: Host) -> None:
    """Three connections of one process to one carrier, each with the bound of its own rule."""
    ports = sorted({free_port() for _ in range(3)})
    one, other, third = ports
    host.set_policy(
        f'[[rule]]\nside = "server"\nport = {one}\ndag = "compress()"\nspin_us = 7\n'
        f'[[rule]]\nside = "server"\nport = {other}\ndag = "compress()"\nspin_us = 0\n'
        f'[[rule]]\nside = "server"\nport = {third}\ndag = "compress()"\n'
        f'[[rule]]\nside = "client"\nport = {one}\nspin_us = 3\n'
    )
    _talk(host, host, "127.0.0.1", ports)
    log = host.finish()
    assert _bounds(log, "client") == {one: 3, other: 0, third: None}
    assert _bounds(log, "server") == {one: 7, other: 0, third: None}


def test_where_memory_is_shared(host: Host) -> None:
    """The smaller one holds for both ends."""
    port = free_port()
    host.set_policy(
        f'[[rule]]\nside = "server"\nport = {port}\nspin_us = 7\n[[rule]]\nside = "client"\nspin_us = 3\n'
    )
    _talk(host, host, "127.0.0.1", [port])
    log = [c for c in host.finish() if c.rx_bytes > 0]
    assert [(c.implementation, c.raw["spin_us"]) for c in log] == [("shm", 3)] * 2


def test_python_carriers_are_not_waited_for(host: Host) -> None:
    port = free_port()
    host.set_policy('[[rule]]\nside = "server"\ndag = "count()"\nspin_us = 7\n')
    _talk(host, host, "127.0.0.1", [port])
    log = host.finish()
    for role in ("client", "server"):
        assert _bounds(log, role, "python") == {port: None}


@pytest.mark.net
def test_between_two_hosts(pair: Pair) -> None:
    """Each host's rule bounds what is done there."""
    port = free_port()
    pair.dictate("compress()", spin_us=5)
    pair.client.set_policy('[[rule]]\nside = "client"\nspin_us = 9\n')
    _talk(pair.server, pair.client, pair.address, [port])
    assert _bounds(pair.client.finish(), "client") == {port: 9}
    assert _bounds(pair.server.finish(), "server") == {port: 5}
