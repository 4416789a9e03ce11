"""How long it is believed that somebody is not there: no longer than he was away; who requires asks again."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest

from bertha_socket.agent import silence
from bertha_socket.agent.messages import Verdict
from bertha_socket.agent.silence import Silences, believe
from tests.agent.conftest import Agent, StartAgent
from tests.agent.shim import Negotiated, Shim, in_namespace, listen
from tests.agent.test_chunnels import client_rule, server_rule, write_policy
from tests.harness import NamespaceTrio, eventually

net = pytest.mark.net
_HOST = (1, bytes(16), None)


def test_doubt_comes_later_and_later() -> None:
    """Once more after as long again, and never later than a new question would come anyway."""
    now, found, asked = 100.0, None, []
    for _ in range(12):
        found = believe(now, 60.0, found)
        assert found.until == now + 60.0
        now = found.doubt
        asked.append(now - 100.0)
    assert asked[:4] == [1.0, 3.0, 7.0, 15.0]
    assert asked[-1] - asked[-2] == 60.0


def test_who_requires_asks_again() -> None:
    found = believe(100.0, 60.0)
    assert found.holds(100.5, required=True) and not found.holds(101.0, required=True)
    assert found.holds(159.0) and not found.holds(160.0)
    assert not believe(100.0, 0.5).holds(100.6, required=True)


def test_a_host_that_was_heard() -> None:
    hosts = Silences()
    assert not hosts.heard(*_HOST[:2]) and not hosts.answered(_HOST)
    hosts.note(_HOST, "why", 100.0, 60.0)
    assert hosts.look(_HOST, 100.5, required=False) is not None
    assert hosts.heard(*_HOST[:2])
    assert hosts.look(_HOST, 100.5, required=False) is None, "whoever speaks may answer"
    assert not hosts.heard(*_HOST[:2]), "told once"
    hosts.note(_HOST, "why", 101.0, 60.0)
    assert not hosts.heard(*_HOST[:2]), "it speaks and does not answer: nobody pays for that again and again"
    assert hosts.look(_HOST, 101.5, required=False) is not None
    assert hosts.answered(_HOST) and hosts.look(_HOST, 101.5, required=False) is None
    hosts.note(_HOST, "why", 102.0, 60.0)
    assert hosts.heard(*_HOST[:2]), "a new silence"


def test_one_question_at_a_time() -> None:
    hosts = Silences()
    found = hosts.note(_HOST, "why", 100.0, 60.0)
    assert found.belief.doubt <= 101.5
    hosts.asked(_HOST, 101.5)
    again = hosts.look(_HOST, 101.6, required=False)
    assert again is not None and again.belief.doubt > 102.0


def test_not_for_any_number_of_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(silence, "_HOSTS_MAX", 3)
    hosts = Silences()
    for number in range(5):
        hosts.note((number, bytes(16), None), "why", 100.0, 60.0)
    assert [host[0] for host, _ in hosts.believed(100.0)] == [2, 3, 4]


# -- between two hosts --------------------------------------------------------------------------------


class Hosts:
    """A client's agent; the server's comes when it is told to."""

    def __init__(self, start: StartAgent, netns: NamespaceTrio, room: Path) -> None:
        self.netns, self.room = netns, room
        self._start = start
        self._stack = contextlib.ExitStack()
        self.client = start(room / "c" / "agent.sock", netns=netns.client)
        self.sock = in_namespace(netns.server.name, lambda: listen("0.0.0.0"))
        self._stack.enter_context(self.sock)

    def start_server(self) -> Agent:
        self.server = self._start(self.room / "s" / "agent.sock", netns=self.netns.server)
        return self.server

    def listen(self) -> None:
        policy = write_policy(self.room, "server.toml", server_rule("compress()"))
        shim = self._stack.enter_context(self.server.shim(policy=policy))
        os.close(shim.listen_with(self.sock, self.netns.server.name)[2])

    def shim(self, *rules: str) -> Shim:
        policy = write_policy(self.room, "client.toml", *rules) if rules else ""
        return self._stack.enter_context(self.client.shim(policy=policy))

    def ask(self, shim: Shim) -> Negotiated:
        netns = self.netns
        return shim.negotiate(netns.server.address, self.sock.getsockname()[1], netns=netns.client.name)

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def hosts(start_agent: StartAgent, netns: NamespaceTrio, room: Path):  # type: ignore[no-untyped-def]
    found = Hosts(start_agent, netns, room)
    with contextlib.closing(found):
        yield found


def has_plan(found: Negotiated) -> bool:
    return found.verdict == Verdict.PLAN and found.types() == ["compress"]


@net
def test_who_requires_is_refused_for_a_moment_only(hosts: Hosts) -> None:
    """Also by what others have found out, who require nothing."""
    plain, strict = hosts.shim(), hosts.shim(client_rule("compress()"))
    for _ in range(3):
        assert hosts.ask(plain).verdict == Verdict.PLAIN
        found = hosts.ask(strict)
        assert found.verdict == Verdict.REFUSED and found.valid_ms <= 1000, found
    hosts.start_server()
    found = eventually(lambda: "listens there" in (f := hosts.ask(strict)).detail and f, "its agent's word")
    assert found.verdict == Verdict.REFUSED and found.valid_ms <= 1000, found
    hosts.listen()
    assert has_plan(eventually(lambda: has_plan(f := hosts.ask(strict)) and f, "the plan"))


@net
def test_who_requires_nothing_is_plain_no_longer_than_it_was_away(hosts: Hosts) -> None:
    """Its server may require chunnels, and then refuses it."""
    plain = hosts.shim()
    found = hosts.ask(plain)
    assert found.verdict == Verdict.PLAIN and "no agent answers" in found.detail, found
    assert found.valid_ms <= 1000, "it asks again, and is told what is believed"
    hosts.start_server()
    hosts.listen()
    eventually(lambda: has_plan(hosts.ask(plain)), "the plan")


@net
def test_an_agent_that_asks_is_there(hosts: Hosts) -> None:
    """The next question is put at once, and waited for."""
    plain = hosts.shim()
    assert hosts.ask(plain).verdict == Verdict.PLAIN
    server = hosts.start_server()
    hosts.listen()
    before = news(hosts.client)
    with server.shim() as other:
        other.negotiate(hosts.netns.client.address, 9, netns=hosts.netns.server.name)
    # Without a key its connection is believed, not its datagram.
    eventually(lambda: news(hosts.client) > before, "word to shims that they ask again")
    assert has_plan(hosts.ask(plain))


@net
def test_a_listener_that_comes_later(hosts: Hosts) -> None:
    """What its agent has said before it came is doubted, too; and a plan is news."""
    hosts.start_server()
    plain = hosts.shim()
    found = hosts.ask(plain)
    assert found.verdict == Verdict.PLAIN and "listens there" in found.detail and found.valid_ms <= 1000
    hosts.listen()
    before = news(hosts.client)
    eventually(lambda: has_plan(hosts.ask(plain)), "the plan", 30)
    assert news(hosts.client) > before


def news(agent: Agent) -> int:
    """What shims look at."""
    return int.from_bytes(Path(agent.path + ".dir").read_bytes()[24:28], "little")


def test_a_listener_with_chunnels_is_news(agent: Agent, room: Path) -> None:
    before = news(agent)
    with agent.shim() as shim, listen() as sock:
        shim.listen(sock)
    assert news(agent) == before
    policy = write_policy(room, "server.toml", server_rule("compress()"))
    with agent.shim(policy=policy) as shim, listen() as sock:
        os.close(shim.listen_with(sock)[2])
        assert news(agent) == before + 1


@net
@pytest.mark.parametrize("device", ["lo", ""])
def test_what_others_have_found_out_by_their_sockets(hosts: Hosts, other_uid: int, device: str) -> None:
    """Who leads his socket astray finds nobody there; and nobody else is plain by it."""
    hosts.start_server()
    hosts.listen()
    place = hosts.netns.server.address, hosts.sock.getsockname()[1]
    name = hosts.netns.client.name
    with hosts.client.shim(uid=other_uid) as other:
        found = other.negotiate(*place, netns=name, device=device)
        if device:
            assert found.verdict == Verdict.PLAIN and "no agent answers" in found.detail, found
            assert has_plan(other.negotiate(*place, netns=name)), "nor is he himself, by another one"
        else:
            assert has_plan(found)
    assert has_plan(hosts.ask(hosts.shim()))
