"""kill -9 of the agent at random moments, while short connections come and go and long ones talk on.

The moments are seeded and decide only what is met; nothing is asserted of when something happens.
"""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path

import pytest

from bertha_socket.reasons import Reason, text_of
from tests.harness import Connection, Host, Program, assert_carried, connections, eventually, free_port
from tests.shim.conftest import Build

_PYTHON = Path(sys.executable).name
_KILLS = 5
# What a connection may say that came to be while there was no agent, or one that knew nothing yet.
_REASONS = {
    text_of(reason)
    for reason in (
        Reason.NO_AGENT,
        Reason.NOT_LISTED,
        Reason.NOT_ATTACHED,
        Reason.PEER_UNAWARE,
        Reason.AGENT_NEW,
    )
}


def _check(log: list[Connection], port: int) -> None:
    """Each byte is accounted for, and what is plain says why."""
    for c in connections(log, port=port):
        assert c.implementation in ("shm", "tcp"), c
        assert (c.reason in _REASONS) == c.plain, c
    for role, other in (("client", "server"), ("server", "client")):
        sent = sum(c.tx_bytes for c in connections(log, port=port, role=role))
        assert sent == sum(c.rx_bytes for c in connections(log, port=port, role=other)), role


_LONG = """
import random, select, socket, sys
bytes_of = random.Random(5).randbytes
all = [socket.create_connection(("127.0.0.1", int(sys.argv[1]))) for _ in range(3)]
turns = 0
while not select.select([sys.stdin], [], [], 0)[0]:
    for connection in all:
        data = bytes_of(20000)
        connection.sendall(data)
        assert connection.recv(20000, socket.MSG_WAITALL) == data
    turns += 1
    if turns == 1:
        print("begun", flush=True)
for connection in all:
    connection.shutdown(socket.SHUT_WR)
    assert connection.recv(1) == b""
print(turns, "ok")
"""


@pytest.mark.parametrize("seed", range(3))
def test_agent_is_killed_under_load(host: Host, build: Build, seed: int) -> None:
    moments = random.Random(seed)
    stress, busy, port, long_port = build("stress"), build("busy"), free_port(), free_port()
    server = host.server([stress, "server", port, "nofork"], port)
    long_server = host.server([busy, "server", long_port], long_port)
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as source, os.fdopen(writing, "wb", buffering=0):
        long = host.spawn([sys.executable, "-c", _LONG, long_port], stdin=source)
        long.wait_text("begun")
        clients = []
        for kill in range(_KILLS):
            words = [stress, "client", port, 100 * seed + kill, 4, 12]
            clients.append(host.spawn(words, run_options=["--no-agent"]))
            time.sleep(moments.uniform(0, 0.2))
            if host.agent is not None:
                host.agent.kill()
            time.sleep(moments.uniform(0, 0.2))
            if not host.rehearse:
                host.start_agent()
        for client in clients:
            assert client.wait(60).split()[-1] == "ok"
        if not host.rehearse:
            _negotiated_again(host, stress, port)
    assert long.wait().endswith("ok\n")
    long_server.wait()
    assert server.running
    log = host.finish()
    if not host.rehearse:
        _check(log, port)
        _check(log, long_port)
        assert_carried(log, _PYTHON, min_connections=3, role="client", port=long_port)


def _negotiated_again(host: Host, stress: Path, port: int) -> None:
    """With the last agent: soon all of a client's connections are on shared memory."""

    def carried() -> bool:
        client = host.spawn([stress, "client", port, 7, 2, 5], run_options=["--no-agent"])
        assert client.wait(60).split()[-1] == "ok"
        mine = connections(host.connlog(), pid=client.pid)
        assert len(mine) == 11
        return all(c.implementation == "shm" for c in mine)

    eventually(carried, "a client all of whose connections are negotiated", 20)


_PATIENT_SERVER = """
import os, select, socket, sys, time
listener = socket.create_server(("127.0.0.1", int(sys.argv[1])))
waiting = select.epoll()
for turn in range(int(sys.argv[3])):
    while not os.path.exists(sys.argv[2]):
        time.sleep(0.005)
    connection, _ = listener.accept()
    connection.setblocking(False)
    waiting.register(connection, select.EPOLLIN)
    kept = b""
    while True:
        waiting.poll()
        try:
            kept = kept or connection.recv(65536)
            if not kept:
                break
            kept = kept[connection.send(kept):]
        except BlockingIOError:
            pass
        waiting.modify(connection, select.EPOLLOUT if kept else select.EPOLLIN)
    connection.close()
"""
_HALF_CLOSED = """
import socket, sys, time
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as connection:
    connection.sendall(b"x" * 411163)
    connection.shutdown(socket.SHUT_WR)
    print("sent", flush=True)
    sys.stdin.readline()
    time.sleep(0.2)
    connection.settimeout(15)
    had = 0
    while data := connection.recv(4096):
        had += len(data)
print("had", had)
"""


def _half_closed(host: Host, port: int, go: Path) -> Program:
    """A client that has sent all before the server accepts it, and reads when the server waits for space."""
    go.unlink(missing_ok=True)
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as source, os.fdopen(writing, "wb", buffering=0) as sink:
        client = host.spawn([sys.executable, "-c", _HALF_CLOSED, port], stdin=source)
        client.wait_text("sent")
        go.touch()
        sink.write(b"go on\n")
        assert client.wait(40).endswith("had 411163\n")
    return client


def test_who_waits_for_space_with_the_old_agents_bell(host: Host) -> None:
    """The server's eventfd is registered with the agent that is killed.  A new client cannot have it from the
    next one, and, having shut down its writing, cannot send a byte either: the server looks by itself."""
    port, go, turns = free_port(), host.dir / "go", 8
    host.server([sys.executable, "-c", _PATIENT_SERVER, port, go, turns], port)
    _half_closed(host, port, go)
    if host.agent is not None:
        host.agent.kill()
        host.start_agent()
    clients = [_half_closed(host, port, go) for _ in range(turns - 1)]
    log = host.finish()
    if not host.rehearse:
        last = connections(log, pid=clients[-1].pid)
        assert [c.implementation for c in last] == ["shm"]
