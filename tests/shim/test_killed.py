"""Processes that are killed close nothing: what they had of tables and of links' slots comes back, and it is
the kernel that ends their connections."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from tests.harness import Host, assert_carried, connections, free_port
from tests.shim.conftest import Build

_HERE = Path(__file__).parent
#: More than a link has slots.
_COUNT = 1100
#: How many records may wait for their burial.
_LATE = 128


@pytest.mark.slow
def test_killed_children(host: Host, build: Build) -> None:
    port = free_port()
    server = host.server([build("killed"), port, _COUNT], port)
    assert host.run([build("killed"), "client", port, _COUNT], timeout=100) == "links 1\n"
    said = server.wait().split()
    assert said[0] == "used" and int(said[1]) <= _LATE
    log = host.finish()
    assert len(assert_carried(log, "killed", role="client")) == _COUNT
    buried = connections(log, program="killed", role="server")
    assert _COUNT - _LATE <= len(buried) <= _COUNT
    assert {c.raw["killed"] for c in buried} == {True}
    assert {(c.implementation, c.tx_bytes, c.rx_bytes) for c in buried} == {("shm", 4, 9)}
    assert len({c.pid for c in buried}) == len(buried)


def test_living_parent(host: Host) -> None:
    port = free_port()
    host.server([sys.executable, _HERE / "echo_all.py", port], port)
    assert host.run([sys.executable, _HERE / "left_living.py", port], timeout=60) == "well\n"
    log = host.finish()
    assert_carried(log, Path(sys.executable).name, role="client", min_connections=300)
    assert not any("killed" in c.raw for c in connections(log))


_FILLS_AND_WAITS = """
import select, socket, struct, sys
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as connection:
    connection.sendall(b"x")
    assert connection.recv(1) == b"x"
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.setblocking(False)
    try:
        while True:
            connection.send(bytes(50_000))
    except BlockingIOError:
        print("full", flush=True)
    poll = select.poll()
    poll.register(connection, select.POLLOUT)
    poll.poll()
"""
_READS_LATER = """
import socket, sys
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
connection, _ = listener.accept()
connection.sendall(connection.recv(1))
sys.stdin.read(1)
try:
    while connection.recv(10_000):
        pass
    print("end")
except ConnectionResetError:
    print("reset")
"""


def test_a_reset_is_told_behind_what_the_ring_holds(host: Host) -> None:
    """The kernel tells of it once, and not to the bell for a writer that waits for room no more."""
    port = free_port()
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as source, os.fdopen(writing, "wb", buffering=0) as sink:
        server = host.spawn([sys.executable, "-c", _READS_LATER, port], stdin=source)
        host.wait_port(server, port)
        client = host.spawn([sys.executable, "-c", _FILLS_AND_WAITS, port])
        client.wait_text("full")
        time.sleep(0.3)  # it sleeps by then
        client.kill()
        sink.write(b"r")
        assert server.wait() == "reset\n"
    assert_carried(host.finish(), Path(sys.executable).name, role="server")
