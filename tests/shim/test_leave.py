"""A connection in the middle of its talk that is left to a program without the shim: no byte is lost.

The other end gives back what lies unread in the ring, and the program goes on with the kernel's connection;
when the other end is busy with something else, a relay reads the ring for the program.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.harness import Host, assert_balanced, connections, eventually, free_port
from tests.shim.conftest import Build

_LEAVE = Path(__file__).parent / "leave.py"
_WAYS = ["fork", "vfork", "self", "spawn", "rights"]


@pytest.mark.parametrize("client", ["ready", "ended", "busy"])
@pytest.mark.parametrize("way", _WAYS)
def test_left_to_a_program_without_shim(host: Host, build: Build, way: str, client: str) -> None:
    port = free_port()
    lines = 4_000 if client == "busy" else 20_000
    server = host.server([build("bare_talk"), port, way, 20_000], port)
    answer = host.run([sys.executable, _LEAVE, port, client, lines])
    assert answer == f"echoed {8 * lines}, preload no\n"
    if way != "self":
        server.wait()
    eventually(lambda: host.rehearse or len(host.connlog()) == 2, "both ends in the log")
    log = host.finish()
    if client == "busy":  # a relay is there to the end
        assert_balanced(log)
    lines = connections(log, role="server")
    assert host.rehearse or lines
    for c in lines:
        assert c.program == "bare_talk"
        assert c.implementation == "shm" and c.reason is not None and "passed to another process" in c.reason
