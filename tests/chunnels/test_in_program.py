"""A program whose connection is encrypted, and no more, does TLS's records itself: what TCP does, it does."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from bertha_socket.agent.client import agent_status
from tests.chunnels import borrow_talk
from tests.conftest import MakeHost
from tests.harness import Connection, Host, Program, free_port

_TALK = Path(borrow_talk.__file__)
_COUNT = len(borrow_talk.CASES)
SIDES = ("connect", "listen")


@pytest.fixture
def host(make_host: MakeHost, cluster_key: Path) -> Host:
    """It has a cluster key, and encrypts whatever it serves."""
    host = make_host(cluster_key=cluster_key)
    host.set_policy('[[rule]]\nside = "server"\ndag = "encrypt()"\n')
    return host


def _start(host: Host, side: str, what: str, count: int = 1) -> tuple[Program, Program]:
    """Who speaks, on that side, and who echoes."""
    port = free_port()
    roles = {side: what, SIDES[side == "connect"]: "echo"}
    server = host.server([sys.executable, _TALK, "listen", roles["listen"], port, count], port)
    client = host.spawn([sys.executable, _TALK, "connect", roles["connect"], port, count])
    return (client, server) if side == "connect" else (server, client)


def _by_themselves(log: list[Connection], count: int, roles: tuple[str, ...] = ("client", "server")) -> None:
    """Each of the connections, at both ends."""
    for role in roles:
        mine = [c for c in log if c.role == role and c.program.startswith("python")]
        assert len(mine) >= count - 1, log  # one is passed on, and may have left our books
        for c in mine:
            assert [one["type"] for one in c.raw["chunnels"]] == ["encrypt", "local_or_remote"], c.raw
            assert c.raw["carried_by"] == "native", c.raw
            assert c.raw["in_program"] > 1000, c.raw


@pytest.mark.parametrize("side", SIDES)
def test_whatever_a_program_does_with_it(host: Host, side: str) -> None:
    speaks, echoes = _start(host, side, "cases", _COUNT)
    assert speaks.wait(120).split() == [case.__name__ for case in borrow_talk.CASES]
    assert echoes.wait(60) == "the end\n" * _COUNT
    _by_themselves(host.finish(), _COUNT)


def _carriers(host: Host) -> list[int]:
    return [c["pid"] for c in agent_status(str(host.agent_path))["agent"]["carriers"]]


@pytest.mark.parametrize("side", SIDES)
def test_the_next_program_goes_on(host: Host, side: str) -> None:
    speaks, echoes = _start(host, side, "executes")
    assert speaks.wait(60) == "went on\n"
    assert echoes.wait(60) == "the end\n"
    _by_themselves(host.finish(), 1, ("server" if side == "connect" else "client",))


@pytest.mark.parametrize("side", SIDES)
def test_closed_to_reset(host: Host, side: str) -> None:
    speaks, echoes = _start(host, side, "resets")
    assert speaks.wait(60) == "resets\n"
    assert echoes.wait(60) == "reset\n"
    _by_themselves(host.finish(), 1)


@pytest.mark.parametrize("side", SIDES)
def test_killed_as_it_waits(host: Host, side: str) -> None:
    """Nothing is under way: the other end sees an end, as the kernel makes one of who is killed."""
    speaks, echoes = _start(host, side, "sleeps")
    speaks.wait_text("ready")
    speaks.process.kill()
    assert echoes.wait(60) == "the end\n"
    _by_themselves(host.finish(), 1, ("server" if side == "connect" else "client",))


@pytest.mark.parametrize("side", SIDES)
def test_last_words(host: Host, side: str) -> None:
    """Sent, and the process ends without closing: they arrive, and an end, or a reset for what is unread."""
    speaks, echoes = _start(host, side, "ends_at_once")
    speaks.wait(60)
    assert echoes.wait(60) in ("the end\n", "reset\n")
    echoed = [c for c in host.finish() if c.raw.get("in_program", 0) > 0]
    assert echoed
    assert echoed[-1].rx_bytes == 40 * 100 + 10_000, echoed


@pytest.mark.parametrize("side", SIDES)
def test_its_carriers_are_killed(host: Host, side: str) -> None:
    """Which could have gone on without them; but nobody would be there for what it does not do itself."""
    speaks, echoes = _start(host, side, "sleeps")
    speaks.wait_text("ready")
    for pid in _carriers(host):
        os.kill(pid, signal.SIGKILL)
    assert "reset" in speaks.wait(60)
    assert "reset" in echoes.wait(60)
    _by_themselves(host.finish(), 1)


@pytest.mark.parametrize("variant", [1, 2, 3, 9])
def test_nonsense_from_the_program(host: Host, variant: int) -> None:
    """Its own connection is lost, and nobody else's."""
    speaks, echoes = _start(host, "connect", "scribbles", variant)
    assert "reset" in speaks.wait(60)
    before = _carriers(host)
    echoes.process.kill()
    speaks, echoes = _start(host, "connect", "resets")
    assert speaks.wait(60) == "resets\n"
    assert echoes.wait(60) == "reset\n"
    assert _carriers(host) == before
    _by_themselves(host.finish(), 2, ("client",))
