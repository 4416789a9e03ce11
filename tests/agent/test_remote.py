"""Hosts whose agents are not there, hang, or are none of ours: found out once, and soon."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bertha_socket.agent import addresses, memory, messages
from bertha_socket.agent.messages import Verdict
from bertha_socket.negotiation.machine import Asked, Responder
from bertha_socket.negotiation.plan import Plan, PlannedChunnel
from tests.agent.conftest import Agent, StartAgent
from tests.agent.shim import Shim, in_namespace, listen
from tests.agent.test_chunnels import client_rule, server_rule, write_policy
from tests.harness import NamespaceTrio

pytestmark = pytest.mark.net
AGENTS = 7277


@pytest.fixture
def asker(start_agent: StartAgent, netns: NamespaceTrio, room: Path) -> Agent:
    """The client's agent."""
    return start_agent(room / "c" / "agent.sock", netns=netns.client)


@pytest.fixture
def strict(asker: Agent, room: Path) -> Iterator[Shim]:
    """A client whose policy requires a chunnel."""
    with asker.shim(policy=write_policy(room, "client.toml", client_rule("compress()"))) as shim:
        yield shim


@contextlib.contextmanager
def agents_port(netns: NamespaceTrio) -> Iterator[socket.socket]:
    """Somebody else listens on the agents' port at the server's host."""
    with in_namespace(netns.server.name, lambda: listen("0.0.0.0", AGENTS)) as sock:
        sock.settimeout(20)
        yield sock


def test_a_host_that_is_not_there(asker: Agent, strict: Shim, netns: NamespaceTrio) -> None:
    """Nobody even says no."""
    address = netns.server.address.rpartition(".")[0] + ".77"
    with asker.shim() as plain:
        found = plain.negotiate(address, 80, netns=netns.client.name)
        assert found.verdict == Verdict.PLAIN and "no agent answers" in found.detail, found
        again = plain.negotiate(address, 81, netns=netns.client.name)
        assert again.verdict == Verdict.PLAIN and again.valid_ms <= found.valid_ms
    assert strict.negotiate(address, 80, netns=netns.client.name).verdict == Verdict.REFUSED


def test_one_that_says_nothing(asker: Agent, strict: Shim, netns: NamespaceTrio) -> None:
    with agents_port(netns):
        with asker.shim() as plain:
            found = plain.negotiate(netns.server.address, 80, netns=netns.client.name)
            assert found.verdict == Verdict.PLAIN and "does not answer" in found.detail
            assert 0 < found.valid_ms < 10_000
        found = strict.negotiate(netns.server.address, 80, netns=netns.client.name)
        assert found.verdict == Verdict.REFUSED and "compress" in found.detail


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\0" * 100, b"\0\0\0\x30" + b"x" * 48]
)
def test_another_program_there(asker: Agent, strict: Shim, netns: NamespaceTrio, answer: bytes) -> None:
    with agents_port(netns) as sock:

        def serve() -> None:
            for _ in range(2):
                connection, _ = sock.accept()
                with connection:
                    connection.recv(65536)
                    connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        with asker.shim() as plain:
            assert plain.negotiate(netns.server.address, 80, netns=netns.client.name).verdict == Verdict.PLAIN
        found = strict.negotiate(netns.server.address, 80, netns=netns.client.name)
        assert found.verdict == Verdict.REFUSED
        thread.join(20)
    assert asker.status()["agent"]["faults"] == 0


def test_a_plan_that_lacks_what_is_required(asker: Agent, strict: Shim, netns: NamespaceTrio) -> None:
    """Also an agent that lies takes no chunnel away."""
    plans = [
        Plan(),
        Plan((PlannedChunnel("compress"),)),
        Plan((PlannedChunnel("compress", (), "zstd/1", "nobody", "python", "host", "host"),)),
    ]
    with agents_port(netns) as sock:

        def serve() -> None:
            for plan in plans:
                connection, _ = sock.accept()
                with connection:
                    machine = Responder(None)
                    while (event := machine.event()) is None:
                        machine.receive(connection.recv(65536))
                    assert isinstance(event, Asked)
                    machine.answer(plan)
                    connection.sendall(machine.outgoing())

        thread = threading.Thread(target=serve)
        thread.start()
        for _ in plans:
            found = strict.negotiate(netns.server.address, 80, netns=netns.client.name, fresh=True)
            assert found.verdict == Verdict.REFUSED and not found.plan, found
            assert "compress" in found.detail
        thread.join(20)


def test_many_ask_at_once(start_agent: StartAgent, asker: Agent, netns: NamespaceTrio, room: Path) -> None:
    """The same question is asked once, and everybody gets the answer."""
    server_agent = start_agent(room / "s" / "agent.sock", netns=netns.server)
    policy = write_policy(room, "server.toml", server_rule("compress()"))
    with server_agent.shim(policy=policy) as server, contextlib.ExitStack() as stack:
        sock = stack.enter_context(in_namespace(netns.server.name, lambda: listen("0.0.0.0")))
        os.close(server.listen_with(sock, netns.server.name)[2])
        port = sock.getsockname()[1]
        shims = [stack.enter_context(asker.shim()) for _ in range(12)]
        found = []

        def ask(shim: Shim) -> None:
            found.append(shim.negotiate(netns.server.address, port, netns=netns.client.name))

        threads = [threading.Thread(target=ask, args=(shim,)) for shim in shims]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert len(found) == 12 and {f.plan for f in found} == {found[0].plan} and found[0].plan
        assert server_agent.status()["agent"]["answered"] == 1
        # One that goes away while it waits hurts nobody.
        with asker.shim() as shim:
            shim.negotiate(netns.server.address, port, netns=netns.client.name, fresh=True)
        gone = asker.shim()
        with in_namespace(netns.client.name, socket.socket) as probe:
            body = gone_body(netns.server.address, port, probe)
            gone.send(messages.Op.NEGOTIATE, body, (probe.fileno(),))
            gone.close()
        with asker.shim() as shim:
            assert shim.negotiate(netns.server.address, port, netns=netns.client.name).plan == found[0].plan
    assert asker.status()["agent"]["faults"] == 0


def gone_body(host: str, port: int, probe: socket.socket) -> bytes:
    return messages.NEGOTIATE.pack(
        addresses.from_text(host), port, 1, 300, memory.netns_cookie(probe.fileno())
    )


def test_more_questions_than_are_asked_at_once(asker: Agent, netns: NamespaceTrio, room: Path) -> None:
    """Whoever is one too many is told so, and for a moment only."""
    policy = write_policy(room, "client.toml", client_rule("compress()"))
    address = netns.server.address.rpartition(".")[0] + ".77"
    with contextlib.ExitStack() as stack:
        shims = [stack.enter_context(asker.shim(policy=policy)) for _ in range(128)]
        plain = stack.enter_context(asker.shim())
        plain.negotiate(address, 9, netns=netns.client.name)  # so that its offer is made
        with in_namespace(netns.client.name, socket.socket) as probe:
            for port, shim in enumerate(shims, 1000):
                shim.send(messages.Op.NEGOTIATE, gone_body(address, port, probe), (probe.fileno(),))
        found = plain.negotiate(address, 80, netns=netns.client.name, fresh=True)
        assert found.verdict == Verdict.PLAIN and "128 other questions" in found.detail, found
        assert found.valid_ms <= 1000
        for shim in shims:
            assert shim.receive().status == 0
        found = plain.negotiate(address, 80, netns=netns.client.name, fresh=True)
        assert "no agent answers" in found.detail, found
