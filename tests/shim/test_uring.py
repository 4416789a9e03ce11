"""A program that sets up an io_uring uses TCP from then on, and loses nothing of what it has."""

from __future__ import annotations

import sys
from pathlib import Path

from tests.harness import Host, connections, eventually, free_port
from tests.shim.conftest import Build

_LINES = Path(__file__).parent / "lines.py"


def test_uring(host: Host, build: Build) -> None:
    port = free_port()
    host.server([build("uring"), port, "2"], port)
    words = ["one", "two", "ring", "three", "four", "--", "five", "six"]
    assert host.run([sys.executable, _LINES, port, *words]) == "ok\n"
    eventually(lambda: host.rehearse or len(host.connlog()) == 4, "both ends in the log")
    log = host.finish()
    if host.rehearse:
        return
    first, second = connections(log, program="uring")
    assert first.implementation == "shm" and second.plain
    assert first.reason == second.reason and "io_uring" in (first.reason or "")
    assert first.rx_bytes == first.tx_bytes == len("one two ring three four ")
