"""syscall(2): the kernel called by number means the same as by name."""

from __future__ import annotations

from tests.harness import Host, assert_balanced, assert_carried, eventually, free_port
from tests.shim.conftest import Build


def test_by_number(host: Host, build: Build) -> None:
    program, port = build("by_number"), free_port()
    host.server([program, "serve", port], port)
    assert host.run([program, "ask", port]) == "ok\n"
    eventually(lambda: host.rehearse or len(host.connlog()) == 2, "both ends in the log")
    log = host.finish()
    assert_carried(log, "by_number", min_connections=2)
    assert_balanced(log)
