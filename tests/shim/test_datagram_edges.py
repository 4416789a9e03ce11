"""Datagrams of one host at the edges of a socket: errors, time limits, addresses, and who else may wait."""

from __future__ import annotations

import pytest

from tests.harness import Connection, Host, free_port, read_connlog
from tests.shim.conftest import Build

#: Who is asleep is woken by the kernel: that goes by memory only where both ends are awake now and then.
pytestmark = pytest.mark.alone

#: Which of them are about sockets that stay the kernel's, from the start or from what is done there.
_KERNELS = {"socket-for-each", "other-source", "cancelled", "worker", "set-first"}
_EDGES = [
    "closed-meanwhile",
    "cancelled",
    "refused",
    "refused-meanwhile",
    "refused-behind-another",
    "patience",
    "looked-at",
    "disconnected",
    "socket-for-each",
    "elsewhere",
    "option-of-duplicate",
    "other-source",
    "in-parts",
    "nothing-at-all",
    "impossible-lengths",
]
_WAITS = [
    "nothing-there",
    "nothing-by-edges",
    "edges",
    "filtered",
    "one-shot",
    "paused",
    "paused-by-another",
    "signalled",
    "passed-on",
    "child-waits",
    "duplicate-set",
    "worker",
    "handler",
    "watched-set",
    "set-first",
    "added-by-another",
]
_UNREAD = ["only-sends", "leaves", "new-number", "left-to-child"]
#: Of datagrams that the two ends might take for one another.
_ORDER = ["alike", "alike-at-first", "cut", "other-address", "child-sends", "file-sent"]


def _by_memory(log: list[Connection]) -> list[Connection]:
    return [c for c in log if c.raw["proto"] == "udp" and c.implementation == "shm" and not c.plain]


@pytest.mark.parametrize(
    ("name", "scene"),
    [
        *(("datagram_edges", scene) for scene in _EDGES),
        *(("datagram_waits", scene) for scene in _WAITS),
        *(("datagram_unread", scene) for scene in _UNREAD),
        *(("datagram_order", scene) for scene in _ORDER),
    ],
)
def test_as_by_the_kernel(host: Host, build: Build, name: str, scene: str) -> None:
    program = build(name)
    alone = host.run([program, free_port(), scene], shim=False, timeout=60)
    if alone == "none\n":
        pytest.skip("the kernel has nothing to try it with")
    assert alone == "ok\n"
    for _ in range(4):  # on a busy machine an end may be asleep at each datagram: the kernel wakes it then
        assert host.run([program, free_port(), scene], timeout=60) == "ok\n"
        log = read_connlog(host.connlog_path)
        if host.rehearse or scene in _KERNELS or _by_memory(log):
            break
    host.finish()
    if host.rehearse:
        return
    if scene not in _KERNELS:
        assert _by_memory(log), log
        return
    udp = [c for c in log if c.raw["proto"] == "udp"]
    assert udp, log
    assert all(c in _by_memory(log) or c.reason for c in udp), udp  # some are, before or beside


@pytest.mark.parametrize("scene", ["agent-away", "closed-agent-away"])
def test_the_agent_does_not_answer(host: Host, build: Build, scene: str) -> None:
    """One thread of a socket waits for it; those that send and receive what they know, or fork, do not."""
    program, port = build("datagram_edges"), free_port()
    host.run([program, free_port(), "refused"], timeout=60)  # the agent is there
    before = len(host.connlog())
    agent = {"AGENT_PID": str(host.agent.pid)} if host.agent is not None else {}
    assert host.run([program, port, scene], timeout=60, env=agent) == "ok\n"
    assert host.rehearse or _by_memory(host.finish()[before:])
