"""A program and its carrier share a ring: what a TCP connection does, it does."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import psutil
import pytest

from bertha_socket.agent.client import agent_status
from tests.chunnels.ring_talk import PINGS
from tests.chunnels.test_authors import ROT
from tests.harness import Connection, Host, eventually, free_port, require_program

_TALK = Path(__file__).parent / "ring_talk.py"
_ROT = f'[[chunnel]]\nname = "rot"\nsource = "{ROT}:Rot"\n\n'


class Kind(NamedTuple):
    """A carrier: what it is called in the agent's list, and what makes the plan choose it."""

    name: str
    chunnel: str
    policy: str

    def running(self, host: Host) -> list[int]:
        """Its processes: of native ones as many as processors, so that two programs have one each."""
        found = agent_status(str(host.agent_path))["agent"]["carriers"]
        assert {c["kind"] for c in found} == {self.name}, found
        return [c["pid"] for c in found]

    def carriers(self, host: Host) -> list[int]:
        """The processes that have the connections: an author's chunnels have one for each end of each."""
        pids = self.running(host)
        if self.name != "authors":
            return pids
        return [child.pid for pid in pids for child in psutil.Process(pid).children()]


KINDS = (
    Kind("native", "compress", '[[rule]]\nside = "server"\ndag = "compress()"\n'),
    Kind("python", "count", '[[rule]]\nside = "server"\ndag = "count()"\n'),
    Kind("authors", "rot", f'{_ROT}[[rule]]\nside = "server"\ndag = "rot()"\n'),
)


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest, host: Host) -> Kind:
    """Each carrier in turn, by the host's policy."""
    return use(request.param, host)


def use(kind: Kind, host: Host) -> Kind:
    """What the host's programs have from now on."""
    host.set_policy(kind.policy)
    return kind


def command(role: str, case: str, port: int) -> list[str | Path | int]:
    return [sys.executable, _TALK, role, case, port]


def by_ring(log: list[Connection], role: str, kind: Kind) -> list[Connection]:
    chosen = [c for c in log if c.role == role and c.program.startswith("python")]
    assert chosen, log
    for c in chosen:
        assert c.raw["carrier"] == "ring", c.raw
        assert [chunnel["type"] for chunnel in c.raw["chunnels"]] == [kind.chunnel, "local_or_remote"], c.raw
    return chosen


@pytest.mark.parametrize("case", ["duplex", "half", "late", "unread", "reset", "exec", "passed"])
def test_as_a_connection(host: Host, kind: Kind, case: str) -> None:
    port = free_port()
    server = host.server(command("serve", case, port), port)
    said = host.run(command("connect", case, port), timeout=60)
    assert said == ("reset\n" if case == "unread" else "")
    assert server.wait(60) == ("reset\n" if case == "reset" else "")
    by_ring(host.finish(), "client", kind)


def test_both_ends_of_redis(host: Host, kind: Kind) -> None:
    port = free_port()
    server = [require_program("redis-server"), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    host.server(server, port)
    load = [require_program("redis-benchmark"), "-p", str(port), "-t", "set", "-n", "4000", "-q"]
    assert "SET" in host.run([*load, "-c", "20", "-P", "4"], timeout=60)
    log = [c for c in host.finish() if c.rx_bytes > 0]
    assert {c.program for c in log} == {"redis-server", "redis-benchmark"}
    assert all(c.raw["carrier"] == "ring" for c in log), log


@pytest.mark.parametrize(("kind", "count"), [(KINDS[0], 1100), (KINDS[1], 300)], indirect=["kind"])
def test_more_than_a_link_has_places_for(host: Host, kind: Kind, count: int) -> None:
    port = free_port()
    server = [require_program("redis-server"), "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
    host.server(server, port)
    load = [require_program("redis-benchmark"), "-p", str(port), "-t", "set", "-q"]
    assert "SET" in host.run([*load, "-n", str(2 * count), "-c", str(count)], timeout=120)
    log = [c for c in host.finish() if c.rx_bytes > 0 and c.program == "redis-benchmark"]
    assert len(log) >= count
    assert all(c.raw["carrier"] == "ring" for c in log)


@pytest.mark.parametrize("which", [slice(None), slice(1), slice(1, None)], ids=["all", "first", "others"])
def test_a_killed_carrier_resets(host: Host, kind: Kind, which: slice) -> None:
    """At both ends: what it had not sent is lost, and the other end is not to take what came for all."""
    port = free_port()
    server = host.server(command("serve", "killed", port), port)
    client = host.spawn(command("connect", "killed", port))
    client.wait_text("ready")
    carriers = kind.carriers(host)
    for pid in carriers[which] or carriers:  # Python's is one for all
        with contextlib.suppress(ProcessLookupError):  # the other end's process has ended with its connection
            os.kill(pid, signal.SIGKILL)
    assert "reset" in client.wait(30)
    assert "reset" in server.wait(30)
    log = host.finish()
    for role in ("client", "server"):
        by_ring(log, role, kind)
    by_ring(host.finish(), "server", kind)


def _carriers_of_pings(host: Host, kind: Kind, tmp_path: Path, env: dict[str, str]) -> str:
    """What the carriers asked of epoll, and sent, for PINGS messages each way."""
    if os.geteuid() != 0:
        pytest.skip("the native carrier is not to be traced by who is not root")
    port = free_port()
    server = host.server(command("serve", "pings", port), port, env=env)
    client = host.spawn(command("connect", "pings", port), stdin=subprocess.PIPE, env=env)
    client.wait_text("ready")
    traces = {pid: tmp_path / f"trace.{pid}" for pid in kind.carriers(host)}
    tracing = [
        host.spawn([require_program("strace"), "-q", "-e", _TRACED, "-o", path, "-p", pid], shim=False)
        for pid, path in traces.items()
    ]
    eventually(lambda: all(_traced(pid) for pid in traces), "strace")
    assert client.process.stdin is not None
    client.process.stdin.write(b"\n")
    client.process.stdin.close()
    client.wait(60)
    server.wait(60)
    host.stop(*tracing, number=signal.SIGINT)
    by_ring(host.finish(), "client", kind)
    said = "".join(path.read_text() for path in traces.values())
    assert said.count("EPOLLIN") >= PINGS  # it was them
    return said


def test_a_carrier_is_woken_and_wakes_once_for_a_message(host: Host, kind: Kind, tmp_path: Path) -> None:
    """What a bell leaves in the socketpair is no event, nor is it one for a program that it was read from."""
    said = _carriers_of_pings(host, kind, tmp_path, {})
    assert said.count("events=EPOLLOUT,") < PINGS // 4
    assert said.count('"\\0", 1, MSG_DONTWAIT|MSG_NOSIGNAL') < PINGS * 2 + PINGS // 4


_TRACED = "trace=epoll_wait,epoll_pwait,sendto"


def _traced(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return "TracerPid:\t0\n" not in status


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


def test_a_listener_that_is_closed_as_soon_as_it_has_accepted(host: Host, kind: Kind) -> None:
    """What the connection's ends still have to agree on then is agreed on all the same."""
    port, count = free_port(), 10
    server = host.spawn([sys.executable, "-c", _ONCE, port, count])
    for turn in range(count):
        server.wait_text(f"listens {turn}\n")
        host.run([sys.executable, "-c", _ASKS, port + turn], timeout=60)
    server.wait()
    log = [c for c in host.finish() if c.rx_bytes == 16]
    assert len(log) == 2 * count
    assert all(kind.chunnel in [one["type"] for one in c.raw["chunnels"]] for c in log), log
