"""A program and its native carrier share a ring: what a TCP connection does, it does."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from tests.harness import Connection, Host, free_port, require_program

_TALK = Path(__file__).parent / "ring_talk.py"
_POLICY = '[[rule]]\nside = "server"\ndag = "compress()"\n'


def _command(role: str, case: str, port: int) -> list[str | Path | int]:
    return [sys.executable, _TALK, role, case, port]


def _by_ring(log: list[Connection], role: str) -> list[Connection]:
    chosen = [c for c in log if c.role == role and c.program.startswith("python")]
    assert chosen, log
    for c in chosen:
        assert c.raw["carrier"] == "ring", c.raw
        assert [chunnel["type"] for chunnel in c.raw["chunnels"]] == ["compress", "local_or_remote"], c.raw
    return chosen


def _carrier(host: Host) -> int:
    assert host.agent is not None
    pid = host.agent.pid
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()
    found = [int(c) for c in children if Path(f"/proc/{c}/comm").read_text().strip() == "bertha-carrier"]
    assert len(found) == 1, children
    return found[0]


@pytest.mark.parametrize("case", ["duplex", "half", "unread", "reset", "exec", "passed"])
def test_as_a_connection(host: Host, case: str) -> None:
    host.set_policy(_POLICY)
    port = free_port()
    server = host.server(_command("serve", case, port), port)
    said = host.run(_command("connect", case, port), timeout=60)
    assert said == ("reset\n" if case == "unread" else "")
    assert server.wait(60) == ("reset\n" if case == "reset" else "")
    _by_ring(host.finish(), "client")


def test_both_ends_of_redis(host: Host) -> None:
    host.set_policy(_POLICY)
    port = free_port()
    server = [require_program("redis-server"), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    host.server(server, port)
    load = [require_program("redis-benchmark"), "-p", str(port), "-t", "set", "-n", "4000", "-q"]
    assert "SET" in host.run([*load, "-c", "20", "-P", "4"], timeout=60)
    log = [c for c in host.finish() if c.rx_bytes > 0]
    assert {c.program for c in log} == {"redis-server", "redis-benchmark"}
    assert all(c.raw["carrier"] == "ring" for c in log), log


def test_more_than_a_link_has_places_for(host: Host) -> None:
    host.set_policy(_POLICY)
    port = free_port()
    server = [require_program("redis-server"), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    host.server(server, port)
    load = [
        require_program("redis-benchmark"),
        "-p",
        str(port),
        "-t",
        "set",
        "-n",
        "2400",
        "-q",
        "-c",
        "1100",
    ]
    assert "SET" in host.run(load, timeout=120)
    log = [c for c in host.finish() if c.rx_bytes > 0 and c.program == "redis-benchmark"]
    assert len(log) >= 1100
    assert all(c.raw["carrier"] == "ring" for c in log)


def test_a_killed_carrier_resets(host: Host) -> None:
    host.set_policy(_POLICY)
    port = free_port()
    server = host.server(_command("serve", "killed", port), port)
    client = host.spawn(_command("connect", "killed", port))
    client.wait_text("ready")
    os.kill(_carrier(host), signal.SIGKILL)
    assert "reset" in client.wait(30)
    assert "reset" in server.wait(30)
    _by_ring(host.finish(), "server")


_ONCE = """
import socket, sys
for turn in range(int(sys.argv[2])):
    with socket.create_server(("127.0.0.1", int(sys.argv[1]) + turn)) as listener:
        print("listens", turn, flush=True)
        connection, _ = listener.accept()
    with connection:
        connection.sendall(connection.recv(16, socket.MSG_WAITALL))
        assert connection.recv(1) == b""
"""
_ASKS = """
import socket, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as connection:
    connection.sendall(b"x" * 16)
    assert connection.recv(16, socket.MSG_WAITALL) == b"x" * 16
"""


def test_a_listener_that_is_closed_as_soon_as_it_has_accepted(host: Host) -> None:
    """What the connection's ends still have to agree on then is agreed on all the same."""
    host.set_policy(_POLICY)
    port, count = free_port(), 10
    server = host.spawn([sys.executable, "-c", _ONCE, port, count])
    for turn in range(count):
        server.wait_text(f"listens {turn}\n")
        host.run([sys.executable, "-c", _ASKS, port + turn], timeout=60)
    server.wait()
    log = [c for c in host.finish() if c.rx_bytes == 16]
    assert len(log) == 2 * count
    assert all("compress" in [one["type"] for one in c.raw["chunnels"]] for c in log), log
