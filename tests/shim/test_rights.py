"""A connection that is passed on by SCM_RIGHTS goes back to the kernel, where its receiver finds it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.harness import Host, assert_balanced, connections, eventually, free_port
from tests.shim.conftest import Build

_LINES = Path(__file__).parent / "lines.py"
_TWICE = Path(__file__).parent / "twice.py"


@pytest.mark.parametrize("when", ["first", "later"])
def test_passed_on(host: Host, build: Build, when: str) -> None:
    port = free_port()
    host.server([build("pass_on"), port, when, "3"], port)
    words = ["a", "b", "c", "--", "d", "e", "--", "f", "g"]
    assert host.run([sys.executable, _LINES, port, *words]) == "ok\n"
    eventually(lambda: host.rehearse or len(host.connlog()) == 6, "both ends in the log")
    log = host.finish()
    lines = connections(log, program="pass_on")
    assert host.rehearse or lines
    for c in lines:
        assert c.reason is not None and "passed" in c.reason
        assert when == "first" or c.implementation == "shm"


def test_passed_on_under_two_numbers(host: Host) -> None:
    """Where the other end does not answer, one relay serves both."""
    port = free_port()
    server = host.server([sys.executable, _TWICE, "serve", port], port)
    assert host.run([sys.executable, _TWICE, "talk", port]) == "all\n"
    server.wait()
    eventually(lambda: host.rehearse or len(host.connlog()) == 2, "both ends in the log")
    log = host.finish()
    assert_balanced(log)  # by the relay, to the end
    lines = connections(log, role="server")
    assert host.rehearse or (lines and all("passed" in (c.reason or "") for c in lines)), lines
