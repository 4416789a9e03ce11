"""A link has much room, of addresses, not of memory: who counts or locks his does not notice."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from tests.harness import Host, assert_carried, assert_plain, connections, free_port, require_program
from tests.shim.conftest import Build

_CURRENT, _FUTURE = 1, 2


@pytest.mark.parametrize(
    ("before", "after"),
    [(_FUTURE, 0), (_CURRENT | _FUTURE, 0), (_CURRENT, _CURRENT), (0, _CURRENT | _FUTURE)],
)
def test_memory_is_locked(host: Host, build: Build, before: int, after: int) -> None:
    if os.geteuid() != 0:
        pytest.skip("locking that much memory is for root")
    assert host.run([build("room"), "lock", before, after]) == "ok\n"
    assert len(assert_carried(host.finish(), "room")) == 2


def test_addresses_are_limited(host: Host, build: Build) -> None:
    assert host.run([build("room"), "space"]) == "ok\n"
    log = host.finish()
    lines = assert_plain(log, "room", min_connections=2)
    if not host.rehearse:
        (client,) = connections(lines, role="client")
        assert client.reason is not None and "a memory limit is reached" in client.reason


@pytest.mark.parametrize("how", ["itself", "child", "exec"])
def test_addresses_are_limited_later(host: Host, build: Build, how: str) -> None:
    """vsftpd limits what each of its sessions may have, which then have their parent's rings."""
    assert host.run([build("room"), "later", how]) == "ok\n"
    lines = connections(host.finish(), program="room")
    if host.rehearse:
        return
    # The second listener's link would have been too much of what the program has left.
    assert sum(line.implementation == "shm" for line in lines) == 2, lines
    assert sum("a memory limit is reached" in (line.reason or "") for line in lines) == 2, lines


@pytest.mark.parametrize("kilobytes", [10_000, 60_000, 300_000, 1_000_000])
def test_little_room_from_the_start(host: Host, build: Build, kilobytes: int) -> None:
    words = ["sh", "-c", f'ulimit -v {kilobytes}; exec "$@"', "sh", build("room"), "small"]
    assert host.run(words) == "ok\n"
    lines = connections(host.finish(), program="room")
    assert host.rehearse or kilobytes < 512_000 or len(lines) == 2  # below, it does not even log
    for line in lines:
        assert line.implementation != "shm" and line.reason


def test_memcached_locks_its_memory(host: Host) -> None:
    if os.geteuid() != 0:
        pytest.skip("locking that much memory is for root")
    port = free_port()
    program = require_program("memcached")
    server = host.server([program, "-u", "root", "-k", "-m", "16", "-l", "127.0.0.1", "-p", port], port)
    client = "import socket, sys; s = socket.create_connection(('127.0.0.1', int(sys.argv[1])))\n"
    client += (
        "for _ in range(9):\n s.sendall(b'set a 0 0 3\\r\\nabc\\r\\n'); assert s.recv(99) == b'STORED\\r\\n'"
    )
    host.run([require_program("python3"), "-c", client, port])
    text = Path(f"/proc/{server.pid}/status").read_text()
    locked = re.search(r"VmLck:\s+(\d+) kB", text)
    assert locked is not None and 0 < int(locked[1]) < 1 << 20
    server.stop()
    assert_carried(host.finish(), "memcached", role="server")
