"""bertha_socket.new() on datagrams and programs under bertha-run with a rule for UDP, on two hosts: they
understand each other, and the agents have agreed for both."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.datagrams.conftest import Pair
from tests.harness import Connection, connections, eventually, free_port

pytestmark = [pytest.mark.program, pytest.mark.net]

_HERE = Path(__file__).parent
_PYTHON = Path(sys.executable).name

# ADDRESS PORT DAG: echoes.
_SERVER = """
import sys, threading
import bertha_socket
def serve(connection):
    with connection:
        for item in connection:
            connection.send(item)
with bertha_socket.new("server", sys.argv[3]).listen((sys.argv[1], int(sys.argv[2]))) as listener:
    print("bound", flush=True)
    for connection in listener:
        threading.Thread(target=serve, args=(connection,), daemon=True).start()
"""

# ADDRESS PORT DAG
_CLIENT = """
import sys
import bertha_socket
with bertha_socket.new("client", sys.argv[3]).connect((sys.argv[1], int(sys.argv[2]))) as connection:
    for i in range(20):
        item = b"%d" % i * 500
        connection.send(item)
        assert connection.recv(20).endswith(item)
print("ok")
"""

# ADDRESS PORT: an ordinary one.
_ORDINARY = """
import socket, sys
with socket.socket(type=socket.SOCK_DGRAM) as sock:
    sock.settimeout(20)
    sock.connect((sys.argv[1], int(sys.argv[2])))
    for i in range(20):
        item = b"%d" % i * 500
        sock.send(item)
        assert sock.recv(65535).endswith(item)
print("ok")
"""


def _types(log: list[Connection], role: str) -> list[tuple[str, str, str]]:
    """Type, implementation and where, of the one connection with bytes."""
    found = [
        c for c in connections(log, program=_PYTHON, role=role) if c.rx_bytes and c.raw["proto"] == "udp"
    ]
    assert len(found) == 1, log
    assert not found[0].plain
    return [(c["type"], c["implementation"], c["where"]) for c in found[0].raw["chunnels"]]


def _both(pair: Pair) -> tuple[list[tuple[str, str, str]], list[tuple[str, str, str]]]:
    eventually(lambda: connections(pair.client.connlog(), role="client"), "the client's line")
    eventually(lambda: connections(pair.server.connlog(), role="server") or True, "the server's line")
    return _types(pair.client.finish(), "client"), _types(pair.server.finish(), "server")


_BOTTOM = ("local_or_remote", "udp", "global")


def test_both_by_new(pair: Pair) -> None:
    """The client names no chunnel."""
    port = free_port()
    server = pair.server.spawn([sys.executable, "-c", _SERVER, pair.address, port, "reliable()"], shim=False)
    server.wait_text("bound")
    command = [sys.executable, "-c", _CLIENT, pair.address, port, ""]
    assert pair.client.run(command, shim=False).strip() == "ok"
    eventually(lambda: connections(pair.server.connlog(), role="server"), "the server's line")
    client, server_line = _both(pair)
    assert client == server_line == [("reliable", "native", "application"), _BOTTOM]


@pytest.mark.parametrize("dag", ["", "reliable()"])
def test_a_server_under_bertha_run(pair: Pair, dag: str) -> None:
    pair.dictate("frame() |> encrypt() |> reliable()", proto="udp")
    port = free_port()
    echo = pair.server.spawn([sys.executable, _HERE / "echo_udp.py", pair.address, port])
    echo.wait_text("bound")
    command = [sys.executable, "-c", _CLIENT, pair.address, port, dag]
    assert pair.client.run(command, shim=False).strip() == "ok"
    client = _types(pair.client.finish(), "client")
    assert [c[:2] for c in client[:-1]] == [
        ("frame", "python/native"),
        ("encrypt", "python/native"),
        ("reliable", "native"),
    ]
    assert client[-1] == _BOTTOM
    echo.send(15)
    assert [c[0] for c in client] == ["frame", "encrypt", "reliable", "local_or_remote"]


def test_a_client_under_bertha_run(pair: Pair) -> None:
    port = free_port()
    dag = "frame() |> encrypt() |> reliable()"
    server = pair.server.spawn([sys.executable, "-c", _SERVER, pair.address, port, dag], shim=False)
    server.wait_text("bound")
    assert pair.client.run([sys.executable, "-c", _ORDINARY, pair.address, port]).strip() == "ok"
    client = _types(pair.client.finish(), "client")
    assert [c[0] for c in client] == ["frame", "encrypt", "reliable", "local_or_remote"]


def test_a_new_that_runs_under_bertha_run_itself(pair: Pair) -> None:
    """The preload library leaves its sockets alone, whatever the policy says of them: it has read it."""
    pair.dictate("reliable()", proto="udp")
    port = free_port()
    server = pair.server.spawn(
        [sys.executable, "-c", _SERVER, pair.address, port, "serialize() |> reliable()"]
    )
    server.wait_text("bound")
    client = _CLIENT.replace(".endswith(item)", " == item")
    assert pair.client.run([sys.executable, "-c", client, pair.address, port, ""]).strip() == "ok"
    types = _types(pair.client.finish(), "client")
    assert types == [
        ("serialize", "python", "application"),
        ("reliable", "native", "application"),
        _BOTTOM,
    ]


def test_a_server_tells_the_next_agent(pair: Pair) -> None:
    """Of itself, while it waits for clients."""
    port = free_port()
    server = pair.server.spawn([sys.executable, "-c", _SERVER, pair.address, port, "reliable()"], shim=False)
    server.wait_text("bound")
    assert pair.server.agent is not None
    pair.server.stop(pair.server.agent)
    pair.server.start_agent()

    def answered() -> bool:
        command = [sys.executable, "-c", _ORDINARY, pair.address, port]
        return pair.client.run(command, check=False, timeout=40).strip() == "ok"

    eventually(answered, "an ordinary client, which its agent tells of the chunnels", 60)
    assert [c[0] for c in _types(pair.client.finish(), "client")] == ["reliable", "local_or_remote"]


def test_without_agents_there_is_no_common_ground(pair: Pair) -> None:
    """A server under bertha-run is asked through its agent; without one here it is said what to do."""
    pair.dictate("reliable()", proto="udp")
    port = free_port()
    echo = pair.server.spawn([sys.executable, _HERE / "echo_udp.py", pair.address, port])
    echo.wait_text("bound")
    assert pair.client.agent is not None
    pair.client.stop(pair.client.agent)
    command = [sys.executable, "-c", _CLIENT, pair.address, port, "reliable()"]
    said = pair.client.run(command, shim=False, check=False, timeout=30)
    assert "TimeoutError" in said
    assert "reliable is required: run bertha_socket.new() there, or bertha-run with an agent here too" in said
