"""Datagrams between two programs of one host pass by shared memory, and do what they do by the kernel."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import pytest

from bertha_socket.agent.client import agent_status
from bertha_socket.reasons import Reason, text_of
from tests.datagrams.test_calls import NAMES
from tests.harness import Connection, Host, NamespaceTrio, eventually, free_port, read_connlog
from tests.harness.namespaces import Namespace
from tests.shim.conftest import Build

#: Who is asleep is woken by the kernel: that goes by memory only where both ends are awake now and then.
pytestmark = pytest.mark.alone

_DATAGRAMS = Path(__file__).parent.parent / "datagrams"
_WAITS = ["block", "level", "edge", "poll", "select"]
_EVERYBODYS_PYTHON = Path("/usr/bin/python3")
_ONE_CPU = ["taskset", "-c", str(min(os.sched_getaffinity(0)))]

#: Of calls.py: those with a connected socket that has one reader, and the answers that it has behind it.
_CONNECTED = {"names", "sizes", "cut", "waiting"}
_WARM = ["--warm", 200]

_ASK = (
    "import socket, sys; s = socket.socket(type=socket.SOCK_DGRAM); s.settimeout(20)\n"
    "s.connect((sys.argv[1], int(sys.argv[2])))\n"
    "for i in range(2000): s.send(b'%d' % i); assert s.recv(100).endswith(b'|%d' % i)\n"
)


def _by_memory(log: list[Connection], role: str | None = None) -> list[Connection]:
    sockets = [c for c in log if c.raw["proto"] == "udp" and role in (None, c.role)]
    return [c for c in sockets if c.implementation == "shm" and not c.plain]


@pytest.mark.parametrize(
    ("scene", "by"),
    [
        *((scene, by) for scene in ("one-by-one", "in-order", "looks") for by in _WAITS),
        ("told-truly", "poll"),
        ("told-truly", "select"),
        ("interrupted", "block"),
        ("interrupted", "level"),
        ("sockets-of-threads", "block"),
        ("sockets-of-threads", "level"),
        *((scene, by) for scene in ("stopped", "coming-and-going", "inherited") for by in ("block", "level")),
    ],
)
def test_as_by_the_kernel(host: Host, build: Build, scene: str, by: str) -> None:
    program, port = build("datagrams"), free_port()
    assert host.run([program, port, scene, by], shim=False, timeout=60) == "ok\n"
    for _ in range(4):  # on a busy machine an end may be asleep at each datagram: the kernel wakes it then
        assert host.run([program, port, scene, by], timeout=60) == "ok\n"
        log = read_connlog(host.connlog_path)
        if _by_memory(log, "server") and _by_memory(log, "client"):
            break
    host.finish()
    assert host.rehearse or (_by_memory(log, "server") and _by_memory(log, "client")), log


def _each_is_told_of(host: Host, log: list[Connection]) -> None:
    """Each socket is there, by memory or with the reason why it is not."""
    udp = [c for c in log if c.raw["proto"] == "udp"]
    assert host.rehearse or (udp and all(c in _by_memory(log) or c.reason for c in udp)), log


@pytest.mark.parametrize("scene", ["in-order", "stopped"])
def test_on_one_processor(host: Host, build: Build, scene: str) -> None:
    assert host.run([*_ONE_CPU, build("datagrams"), free_port(), scene, "level"], timeout=60) == "ok\n"
    assert host.rehearse or _by_memory(host.finish())


@pytest.mark.parametrize("by", ["block", "edge", "select"])
@pytest.mark.parametrize("scene", ["killed", "duplicates"])
def test_client_by_memory_at_first(host: Host, build: Build, scene: str, by: str) -> None:
    assert host.run([build("datagrams"), free_port(), scene, by], timeout=60) == "ok\n"
    log = host.finish()
    if scene == "duplicates":  # at the server its number changes
        _each_is_told_of(host, log)
    else:
        assert host.rehearse or _by_memory(log, "client"), log


@pytest.mark.parametrize("scene", ["shared", "threads", "kernels-own"])
def test_what_stays_the_kernels(host: Host, build: Build, scene: str) -> None:
    """Several processes or threads that read one socket, sets that are watched, options of the kernel's."""
    assert host.run([build("datagrams"), free_port(), scene, "block"], timeout=60) == "ok\n"
    _each_is_told_of(host, host.finish())


def test_without_spinning(host: Host, build: Build) -> None:
    command = [build("datagrams"), free_port(), "in-order", "level"]
    assert host.run(command, timeout=60, env={"BERTHA_SPIN_US": "0"}) == "ok\n"
    assert host.rehearse or _by_memory(host.finish())


def test_a_policy_that_prohibits_it(host: Host, build: Build) -> None:
    words = [build("datagrams"), free_port(), "one-by-one", "block"]
    for _ in range(4):  # as above: without it they go by memory
        assert host.run(words, timeout=60) == "ok\n"
        before = read_connlog(host.connlog_path)
        if _by_memory(before):
            break
    host.set_policy('[[rule]]\nproto = "udp"\nprohibit = ["shm"]\n')
    assert host.run(words, timeout=60) == "ok\n"
    log = host.finish()
    assert host.rehearse or (_by_memory(before) and not _by_memory(log[len(before) :])), log


def _echo(host: Host, address: str, port: int, *, shim: bool = True, netns: Namespace | None = None) -> None:
    program = host.spawn([sys.executable, _DATAGRAMS / "echo_udp.py", address, port], shim=shim, netns=netns)
    eventually(lambda: "bound" in program.text(), "the echo's socket")


def _calls(
    host: Host, where: list[object], names: list[str], *, netns: Namespace | None = None, memory: bool = True
) -> list[Connection]:
    """Each of them, by memory where the socket is connected, or not at all."""
    command = [sys.executable, _DATAGRAMS / "calls.py", *where, *_WARM, *names]
    for _ in range(4):  # as above
        seen = len(_by_memory(read_connlog(host.connlog_path), "client"))
        said = host.run(command, netns=netns, timeout=120)
        assert said.split("\n")[:-1] == [f"{name} ok" for name in names]
        by_memory = len(_by_memory(read_connlog(host.connlog_path), "client")) - seen
        if not memory or by_memory >= len(_CONNECTED & set(names)):
            break
    log = host.finish()
    enough = by_memory >= len(_CONNECTED & set(names)) if memory else by_memory == 0
    assert host.rehearse or enough, log
    return log


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_each_call(host: Host, address: str) -> None:
    port = free_port()
    _echo(host, address, port)
    names = [name for name in NAMES if address != "::1" or name not in ("ports", "sizes")]
    _calls(host, [address, port], names)


@pytest.mark.parametrize("shims", [(True, False), (False, True)], ids=["plain client", "plain server"])
def test_the_other_end_is_plain(host: Host, shims: tuple[bool, bool]) -> None:
    port = free_port()
    _echo(host, "127.0.0.1", port, shim=shims[0])
    command = [sys.executable, _DATAGRAMS / "calls.py", "127.0.0.1", port, "names", "sizes", "cut"]
    assert host.run(command, shim=shims[1], timeout=60) == "names ok\nsizes ok\ncut ok\n"
    assert _by_memory(host.finish()) == []


@pytest.mark.net
@pytest.mark.parametrize("trap", [False, True], ids=["alone", "trap"])
def test_two_namespaces(netns: NamespaceTrio, host: Host, trap: bool) -> None:
    """A third one has a server of the same address, which the client cannot reach: it gets nothing.

    Which of the two it is that a datagram reaches the directory cannot tell: so it goes by UDP.
    """
    port = free_port()
    if trap:
        _echo(host, netns.trap.address, port, netns=netns.trap)
    _echo(host, netns.server.address, port, netns=netns.server)
    names = ["names", "sizes", "cut", "waiting"]
    log = _calls(host, [netns.server.address, port], names, netns=netns.client, memory=not trap)
    used = [c for c in log if c.role == "client" and c.rx_bytes > 0]
    assert host.rehearse or not trap or {c.reason for c in used} == {text_of(Reason.AMBIGUOUS)}, log


@pytest.mark.net
def test_only_the_trap_is_listed(netns: NamespaceTrio, host: Host) -> None:
    port = free_port()
    _echo(host, netns.trap.address, port, netns=netns.trap)
    _echo(host, netns.server.address, port, netns=netns.server, shim=False)
    command = [sys.executable, _DATAGRAMS / "calls.py", netns.server.address, port, "names", "sizes"]
    assert host.run(command, netns=netns.client, timeout=60) == "names ok\nsizes ok\n"
    assert _by_memory(host.finish()) == []


@pytest.mark.net
def test_between_namespaces_by_memory(netns: NamespaceTrio, host: Host) -> None:
    port = free_port()
    _echo(host, netns.server.address, port, netns=netns.server)
    host.run([sys.executable, "-c", _ASK, netns.server.address, port], netns=netns.client, timeout=60)
    assert host.rehearse or _by_memory(host.finish(), "client")


_SAME = ("proto", "role", "peer", "chunnels", "plain", "reason", "tx_bytes", "rx_bytes")
_TALKS_ON = _ASK + "print('asked', flush=True); sys.stdin.read()\n"


def test_as_the_agent_sees_it(host: Host) -> None:
    """`bertha ps` tells of live sockets what the log tells at their end."""
    port = free_port()
    _echo(host, "127.0.0.1", port)
    for _ in range(4):  # as above
        with contextlib.ExitStack() as stack:
            reader, writer = os.pipe()
            stack.callback(os.close, writer)
            with open(reader, "rb") as source:
                client = host.spawn([sys.executable, "-c", _TALKS_ON, "127.0.0.1", port], stdin=source)
            eventually(lambda client=client: "asked" in client.text(), "the client's answers", 60)
            live = agent_status(str(host.agent_path))["connections"]
        client.wait(20)
        (logged,) = [c.raw for c in read_connlog(host.connlog_path) if c.pid == client.pid]
        (seen,) = [c for c in live if c["pid"] == client.pid]
        assert {key: seen[key] for key in _SAME} == {key: logged[key] for key in _SAME}
        if not logged["plain"]:
            break
    host.finish()
    assert host.rehearse or seen["chunnels"][0]["implementation"] == "shm", seen


def test_after_another_agent(host: Host) -> None:
    """A server tells an agent that was started after it of its socket when a datagram comes."""
    port = free_port()
    _echo(host, "127.0.0.1", port)
    assert host.agent is not None
    host.agent.process.kill()
    host.agent.process.wait(10)
    host.start_agent()
    ask = [sys.executable, "-c", _ASK, "127.0.0.1", port]

    def by_memory() -> bool:
        host.run(ask, timeout=60)
        return bool(_by_memory(read_connlog(host.connlog_path), "client"))

    eventually(lambda: host.rehearse or by_memory(), "datagrams by memory", 30)
    host.finish()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start programs as another user")
@pytest.mark.skipif(not _EVERYBODYS_PYTHON.exists(), reason="/usr/bin/python3 is not there")
@pytest.mark.parametrize(
    "policy", ["", '[[rule]]\nproto = "udp"\nallow_users = ["*"]\n'], ids=["default", "allowed"]
)
def test_two_users(host: Host, policy: str) -> None:
    """Nobody proves whose a datagram is: who differ share memory only where both say so."""
    port = free_port()
    host.open_to_other_users()
    host.set_policy(policy)
    _echo(host, "127.0.0.1", port)
    host.spawn([_EVERYBODYS_PYTHON, "-c", _ASK, "127.0.0.1", port], user="nobody").wait(60)
    log = host.finish()
    (client,) = [c for c in log if c.role == "client"]
    assert host.rehearse or client.plain == (policy == ""), log
    assert host.rehearse or policy or "another user" in (client.reason or ""), client
