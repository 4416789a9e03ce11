"""UDP programs in Python on two hosts, behind Python's own doors: what goes over the wire is `reliable`'s."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.datagrams.conftest import Pair
from tests.harness import Connection, Host, Program, connections, free_port

pytestmark = [pytest.mark.program, pytest.mark.net]

_HERE = Path(__file__).parent
_PYTHON = Path(sys.executable).name
_DOORS = {
    "monkey": [sys.executable, "-m", "bertha_socket.monkey"],
    "drop-in": [sys.executable, _HERE / "drop_in.py"],
}
_NAMES = ["names", "sizes", "cut", "waiting", "threads", "forked", "ports", "shut"]

_QUIT = """
import socket, sys
with socket.socket(type=socket.SOCK_DGRAM) as sock:
    sock.sendto(b"quit", (sys.argv[1], int(sys.argv[2])))
"""


def _start_echo(host: Host, door: str, address: str, port: int) -> Program:
    program = host.spawn([*_DOORS[door], _HERE / "echo_udp.py", address, port], shim=False)
    program.wait_text("bound")
    return program


def _carried(log: list[Connection], role: str) -> list[Connection]:
    """Those that had bytes, all of which were `reliable`'s."""
    found = [c for c in connections(log, program=_PYTHON, role=role) if c.rx_bytes > 0]
    assert found, log
    for connection in found:
        assert connection.raw["proto"] == "udp"
        assert not connection.plain, connection
        assert [c["type"] for c in connection.raw["chunnels"]] == ["reliable", "local_or_remote"], connection
    return found


@pytest.mark.parametrize("server", _DOORS)
@pytest.mark.parametrize("client", _DOORS)
def test_calls(pair: Pair, server: str, client: str) -> None:
    """Each call does what the kernel's does (test_calls.py has the same without chunnels)."""
    pair.dictate("reliable()", proto="udp")
    port = free_port()
    echo = _start_echo(pair.server, server, pair.address, port)
    command = [*_DOORS[client], _HERE / "calls.py", pair.address, port, *_NAMES]
    said = pair.client.run(command, shim=False, timeout=120)
    assert said.split("\n")[:-1] == [f"{name} ok" for name in _NAMES]
    pair.client.run([*_DOORS["monkey"], "-c", _QUIT, pair.address, port], shim=False)
    echo.wait()
    assert len(_carried(pair.client.finish(), "client")) >= len(_NAMES)
    _carried(pair.server.connlog(), "server")


def test_a_client_that_requires_it(pair: Pair) -> None:
    """By a rule that names its script; the server serves others too."""
    rule = '[[rule]]\nprogram = "calls.py"\nside = "client"\nproto = "udp"\ndag = "reliable()"\n'
    pair.client.set_policy(rule)
    pair.dictate("prefer reliable()", proto="udp")
    port = free_port()
    _start_echo(pair.server, "monkey", pair.address, port)
    command = [*_DOORS["monkey"], _HERE / "calls.py", pair.address, port, "names", "sizes"]
    assert pair.client.run(command, shim=False, timeout=60).split() == ["names", "ok", "sizes", "ok"]
    _carried(pair.client.finish(), "client")


def test_a_preloaded_end(pair: Pair) -> None:
    """One door at each end."""
    pair.dictate("reliable()", proto="udp")
    port = free_port()
    _start_echo(pair.server, "monkey", pair.address, port)
    command = [sys.executable, _HERE / "calls.py", pair.address, port, "names", "sizes"]
    assert pair.client.run(command, timeout=60).split() == ["names", "ok", "sizes", "ok"]
    _carried(pair.client.finish(), "client")
