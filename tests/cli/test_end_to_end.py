"""The real agent, the real library, real connections: what `ps` shows is what the log says afterwards."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.harness import Host, eventually, free_port

_BIN = Path(sys.executable).parent

_SERVER = """
import socket, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
held = []
for _ in range(int(sys.argv[2])):
    connection, _ = listener.accept()
    connection.sendall(connection.recv(1000) + b"!")
    assert connection.recv(1000) == b"second"
    connection.sendall(b"ok")
    held.append(connection)
print("all served", flush=True)
for connection in held:
    connection.recv(1)
"""

_CLIENT = """
import socket, sys
connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
connection.sendall(b"hello")
assert connection.recv(1000) == b"hello!"
connection.sendall(b"second")
assert connection.recv(1000) == b"ok"
print("served", flush=True)
sys.stdin.read()
"""


# The local address of an accepted connection that waits for its peer: the shim asks for it when it is logged.
_UNKNOWN = "[::]:0"


def bertha(host: Host, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(_BIN / "bertha"), *args], env=host.environment(), capture_output=True, text=True, timeout=60
    )


def ps(host: Host) -> list[dict[str, Any]]:
    done = bertha(host, "ps", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert isinstance(found, list)
    return found


def key(connection: dict[str, Any]) -> tuple[Any, ...]:
    """What names an end, in the log and in `ps`.  Not `local`: see _UNKNOWN."""
    return tuple(connection[name] for name in ("pid", "role", "peer"))


def test_ps_and_the_connection_log_tell_the_same(host: Host) -> None:
    if host.rehearse:
        pytest.skip("there is nothing to see in a rehearsal")
    port = free_port()
    # The reading ends are ours: closing them ends the clients, and thereby the connections.
    command = [sys.executable, "-c", _SERVER, str(port), "2"]
    server = host.spawn(command, run_options=["--name", "the-server"])
    host.wait_port(server, port)
    hooked = host.spawn([sys.executable, "-c", _CLIENT, str(port)], stdin=subprocess.PIPE, label="hooked")
    eventually(lambda: "served" in hooked.text(), "the hooked client to be served")
    plain = host.spawn(
        [sys.executable, "-c", _CLIENT, str(port)], stdin=subprocess.PIPE, shim=False, label="plain"
    )
    eventually(lambda: "all served" in server.text(), "the server to have served both")

    live = {key(each): each for each in ps(host) if each["pid"] in (server.pid, hooked.pid)}
    table = bertha(host, "ps").stdout
    for client in (hooked, plain):
        assert client.process.stdin is not None
        client.process.stdin.close()
        client.wait()
    server.wait()

    logged = {key(connection.raw): connection.raw for connection in host.connlog()}
    assert len(logged) == 3  # both ends of the one, the server's end of the other
    assert live.keys() == logged.keys()
    for which, line in logged.items():
        shown = live[which]
        assert shown.keys() == line.keys()
        same = line.keys() - {"time"} - ({"local"} if shown["local"] == _UNKNOWN else set())
        assert {name: shown[name] for name in same} == {name: line[name] for name in same}
        assert shown["time"] <= line["time"]
    servers = [line for line in logged.values() if line["role"] == "server"]
    assert {line["program"] for line in servers} == {"the-server"}
    assert sorted(line["plain"] for line in servers) == [False, True]
    assert {line["reason"] for line in servers if line["plain"]} != {None}
    assert table.count("the-server") == 2


def test_doctor_sees_the_agent_and_its_connections(host: Host) -> None:
    if host.rehearse:
        pytest.skip("there is nothing to see in a rehearsal")
    done = bertha(host, "doctor", "--json")
    checks = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert (done.returncode, done.stderr) == (0, "")
    assert checks["agent"]["reason"] == f"serving at {host.agent_path}, 0 connections"


def test_bertha_run_starts_an_agent_that_stays(make_host: Any, tmp_path: Path) -> None:
    """Started on demand, it is nobody's child, and the next program finds it."""
    host = make_host(agent=False)
    if host.rehearse:
        pytest.skip("there is nothing to see in a rehearsal")
    assert host.run(["true"]) == ""
    try:
        first = json.loads(bertha(host, "doctor", "--json").stdout)
        (agent,) = [check for check in first["checks"] if check["name"] == "agent"]
        assert agent["reason"].startswith("serving at ")
        assert host.run(["sh", "-c", "echo here"]) == "here\n"
    finally:
        assert bertha(host, "agent", "--stop").returncode == 0
    assert bertha(host, "ps").returncode == 1
