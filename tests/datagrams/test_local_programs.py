"""Programs that have never heard of us speak by UDP on one host: by shared memory, by both ends' log."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.harness import Connection, Host, Program, eventually, free_port, read_connlog, require_program
from tests.harness.directory import listed_ports

#: Who is asleep is woken by the kernel: that goes by memory only where both ends are awake now and then.
pytestmark = [pytest.mark.program, pytest.mark.alone]

_HERE = Path(__file__).parent
_ATTEMPTS = 4  # on a busy machine an end may be asleep at each datagram


def _serve(host: Host, command: list[object], *ports: int) -> Program:
    server = host.spawn(command)

    def listed() -> bool:
        assert server.running, server.text()
        return set(ports) <= listed_ports(Path(f"{host.agent_path}.dir"))

    eventually(listed, f"{server.label} in the directory")
    return server


def _by_memory(log: list[Connection], program: str) -> bool:
    found = [c for c in log if c.raw["proto"] == "udp" and c.tx_bytes and c.rx_bytes]
    assert {c.program for c in found} == {program}, log
    return {c.role for c in found if c.implementation == "shm" and not c.plain} == {"client", "server"}


@pytest.mark.parametrize("by", ["recvfrom", "select"])
def test_sockperf(host: Host, by: str) -> None:
    """By its own count each question is answered, once and in order."""
    sockperf = require_program("sockperf")
    for _ in range(_ATTEMPTS):
        ports = [free_port(), free_port()]
        how: list[object] = ["-i", "127.0.0.1", "-p", ports[0]]
        if by != "recvfrom":  # it waits for two sockets then, and asks at each in turn
            feed = host.dir / "feed"
            feed.write_text("".join(f"U:127.0.0.1:{port}\n" for port in ports))
            how = ["-f", feed, "-F", by[0]]
        server = _serve(host, [sockperf, "server", *how], *ports[: 1 if by == "recvfrom" else 2])
        # Not as fast as it goes: it gives up at 600,000 a second, which shared memory is beyond.
        said = host.run([sockperf, "ping-pong", *how, "-t", "1", "--mps", "100000"], timeout=60)
        assert "dropped messages = 0; # duplicated messages = 0; # out-of-order messages = 0" in said
        host.stop(server, number=signal.SIGINT)
        assert f"using {by}() to block" in server.text()
        log = read_connlog(host.connlog_path)
        if _by_memory(log, "sockperf"):
            break
    assert _by_memory(log, "sockperf"), log


def test_node(host: Host) -> None:
    """libuv, by an epoll set: each answer is the next question."""
    node = require_program("node")
    for _ in range(_ATTEMPTS):
        port = free_port()
        server = _serve(host, [node, _HERE / "echo_udp.js", port], port)
        assert host.run([node, _HERE / "ask_udp.js", port, 3000], timeout=60) == "ok\n"
        host.stop(server)
        log = read_connlog(host.connlog_path)
        if _by_memory(log, "node"):
            break
    assert _by_memory(log, "node"), log
