"""Errands: every question is answered, and a mistake in one answer is nobody else's."""

from __future__ import annotations

import os
import selectors
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bertha_socket import policy
from bertha_socket.agent.errands import Errands
from bertha_socket.agent.policies import Loaded, Policies
from bertha_socket.agent.sockets import Peer
from tests.agent.conftest import Agent
from tests.agent.shim import listen


class Loop:
    """Turns as the agent does."""

    def __init__(self) -> None:
        self.selector = selectors.DefaultSelector()
        self.errands = Errands(self.selector)
        self.mistakes: list[str] = []

    def turn(self) -> None:
        for key, _ in self.selector.select(0.05):
            try:
                key.data()
            except Exception as error:
                self.mistakes.append(str(error))
        self.errands.tick(time.monotonic())

    def until_idle(self) -> None:
        until = time.monotonic() + 20
        while self.errands.busy or self.selector.get_map():
            assert time.monotonic() < until
            self.turn()


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    yield loop
    loop.errands.close()
    loop.selector.close()


def _mistaken(outcome: object) -> None:
    raise ZeroDivisionError("of who waits for it")


def test_a_mistake_in_an_answer_keeps_nobody_waiting(loop: Loop) -> None:
    answered: list[bool] = []
    for _ in range(6):  # more than one user has at once
        loop.errands.run(os.getuid(), 10, lambda fd: None, _mistaken)
        loop.errands.run(os.getuid(), 10, lambda fd: None, lambda fd: answered.append(fd is not None))
    loop.until_idle()
    assert answered == [True] * 6
    assert len(loop.mistakes) == 6


def test_a_mistake_when_the_time_is_over(loop: Loop) -> None:
    heard: list[BaseException] = []
    loop.errands.failed = heard.append
    for _ in range(3):  # the third waits for its turn
        loop.errands.run(os.getuid(), 0.1, lambda fd: time.sleep(60), _mistaken)
    loop.until_idle()
    assert [str(e) for e in heard] == ["of who waits for it"] * 3


def test_a_file_that_we_stumble_over(loop: Loop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It makes no sense, for all that ask; and who asks the next time is answered too."""
    file = tmp_path / "p.toml"
    file.write_text("")
    monkeypatch.setattr(os, "setgroups", lambda groups: None)
    policies = Policies(loop.errands)
    peer = Peer(os.getpid(), os.getuid(), os.getgid())
    found: list[Loaded] = []

    def ask() -> None:
        ours, theirs = socket.socketpair()
        with ours, theirs:
            policies.read_as(ours, peer, str(file), _mistaken)
            policies.read_as(ours, peer, str(file), found.append)
        loop.until_idle()

    def stumble(*_: object) -> None:
        raise KeyError("a mistake")

    with monkeypatch.context() as now:
        now.setattr(policy, "decode", stumble)
        now.setattr(policy, "load", stumble)
        ask()
        looked = policies.look(peer, str(file))
        assert looked is not None and "makes no sense" in str(looked.error)
    ask()
    assert "makes no sense" in str(found[0].error)
    assert found[1].error is None


def test_half_a_character(agent: Agent, room: Path, other_uid: int) -> None:
    """The file's HELLO is answered, and so are those that follow."""
    path = room / "p.toml"
    path.write_text("[[rule]]\ndag = \"shard(by=expr('\\\\ud800'), choices=[1])\"\n")
    path.chmod(0o644)
    for _ in range(2):
        with agent.shim(uid=other_uid, policy=str(path)):
            (process,) = agent.status()["processes"]
            assert "surrogate" in process["policy_error"]
    path.write_text("")
    with agent.shim(uid=other_uid, policy=str(path)) as shim, listen() as sock:
        os.close(shim.listen(sock)[2])
    assert agent.status()["agent"]["faults"] == 0
