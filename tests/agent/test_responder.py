"""Strangers at the agents' port, and the ports of other namespaces."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bertha_socket.agent.messages import DagNeed, Verdict
from bertha_socket.negotiation.machine import NO_LISTENER, Failed, Initiator
from bertha_socket.negotiation.offer import Offer
from tests.agent.conftest import Agent, StartAgent
from tests.agent.shim import in_namespace, listen
from tests.agent.test_chunnels import server_rule, write_policy
from tests.harness import NamespaceTrio, eventually

LOCAL = "127.0.0.1"


def free_port() -> int:
    with socket.socket(socket.AF_INET6) as sock:
        sock.bind(("::", 0))
        return int(sock.getsockname()[1])


@pytest.fixture(scope="module")
def port() -> int:
    return free_port()


@pytest.fixture
def open_agent(start_agent: StartAgent, port: int) -> Agent:
    """An agent that answers on loopback at `port`."""
    agent = start_agent(BERTHA_AGENT_PORT=str(port))
    assert agent.status()["agent"]["port"] == port
    return agent


def call(port: int, machine: Initiator) -> object:
    """The event at the end of a conversation."""
    with socket.create_connection((LOCAL, port), 10) as sock:
        sock.sendall(machine.outgoing())
        while not machine.finished:
            try:
                machine.receive(sock.recv(65536))
            except ConnectionResetError:  # turned away
                machine.receive(b"")
    return machine.event()


def ended(sock: socket.socket) -> bool:
    """Whether the other end closes it before it says more than a few words."""
    with contextlib.suppress(ConnectionResetError):
        while sock.recv(65536):
            pass
    return True


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.binary(min_size=1, max_size=2000), prefix=st.booleans())
def test_garbage(open_agent: Agent, port: int, data: bytes, prefix: bool) -> None:
    hello = Initiator(LOCAL, 1, Offer()).outgoing()
    with socket.create_connection((LOCAL, port), 10) as sock:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            sock.sendall((hello[: len(hello) // 2] if prefix else b"") + data)
            sock.shutdown(socket.SHUT_WR)
        assert ended(sock)
    assert open_agent.status()["agent"]["faults"] == 0


def test_flipped_bits(open_agent: Agent, port: int) -> None:
    """No answer is built on a message that was altered."""
    good = Initiator(LOCAL, 1, Offer()).outgoing()
    for at in range(0, len(good), 7):
        machine = Initiator(LOCAL, 1, Offer())
        data = bytearray(machine.outgoing())
        data[at] ^= 1
        with socket.create_connection((LOCAL, port), 10) as sock:
            sock.sendall(data)
            sock.shutdown(socket.SHUT_WR)
            while not machine.finished:
                machine.receive(sock.recv(65536))
        assert isinstance(machine.event(), Failed), at
    assert open_agent.status()["agent"]["faults"] == 0


def test_loopback_listeners_are_nobody_elses(open_agent: Agent, port: int, room: Path) -> None:
    policy = write_policy(room, "server.toml", server_rule("compress()"))
    with open_agent.shim(policy=policy) as shim, listen() as sock:
        _, need, claims = shim.listen_with(sock)
        os.close(claims)
        assert need == DagNeed.REQUIRED
        assert call(port, Initiator(LOCAL, sock.getsockname()[1], Offer())) is NO_LISTENER


def test_no_more_than_a_few_at_once(open_agent: Agent, port: int) -> None:
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(socket.create_connection((LOCAL, port), 10)) for _ in range(9)]
        assert ended(socks[-1])  # the others say nothing, and are waited for
        for sock in socks[:-1]:
            sock.setblocking(False)
            with pytest.raises(BlockingIOError):
                sock.recv(1)
        for sock in socks:
            sock.close()
        eventually(lambda: call(port, Initiator(LOCAL, 9, Offer())) is NO_LISTENER, "room for another")


def test_who_says_nothing_is_not_waited_for_long(open_agent: Agent, port: int) -> None:
    with socket.create_connection((LOCAL, port), 30) as sock:
        sock.sendall(Initiator(LOCAL, 1, Offer()).outgoing()[:10])
        assert ended(sock)


def test_a_port_that_is_taken(start_agent: StartAgent, room: Path, open_agent: Agent, port: int) -> None:
    second = start_agent(room / "second" / "agent.sock", BERTHA_AGENT_PORT=str(port))
    facts = second.status()["agent"]
    assert facts["port"] is None and "in use" in facts["port_error"]
    with second.shim() as shim, listen() as sock:  # it works without
        os.close(shim.listen(sock)[2])


@pytest.mark.net
@pytest.mark.parametrize("passed", [False, True])
def test_the_port_of_another_namespace(
    start_agent: StartAgent, netns: NamespaceTrio, room: Path, port: int, passed: bool
) -> None:
    """Other hosts reach the agent in a container while somebody listens there: by a socket of its own or,
    where it cannot have that (the port is taken), by one that its own user's shim passes."""
    inside = netns.server.name
    agent = start_agent(room / "s" / "agent.sock", BERTHA_AGENT_PORT=str(port))
    other = start_agent(room / "c" / "agent.sock", netns=netns.client, BERTHA_AGENT_PORT=str(port))
    policy = write_policy(room, "server.toml", server_rule("compress()"))

    def reached() -> bool:
        def connect() -> int:
            with socket.socket() as sock:
                return sock.connect_ex((netns.server.address, port))

        return in_namespace(netns.client.name, connect) == 0

    assert not reached()
    with agent.shim(policy=policy) as server, other.shim() as client:
        with in_namespace(inside, lambda: listen("0.0.0.0")) as sock:
            with in_namespace(inside, lambda: listen("0.0.0.0", port) if passed else socket.socket()) as door:
                listener, _, claims = server.listen_with(sock, inside, door if passed else None)
                os.close(claims)
            where = (netns.server.address, sock.getsockname()[1])
            found = client.negotiate(*where, netns=netns.client.name)
            assert found.verdict == Verdict.PLAN and found.types() == ["compress"]
        server.unlisten(listener)
        eventually(lambda: not reached(), "the end of the port")


def probe(port: int) -> int:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port))


@pytest.mark.net
def test_a_door_of_another_user(
    start_agent: StartAgent, netns: NamespaceTrio, room: Path, port: int, other_uid: int
) -> None:
    """It is not taken: its owner can take O_NONBLOCK off it, and the agent would wait in accept()."""
    inside = netns.server.name
    agent = start_agent(room / "s" / "agent.sock", BERTHA_AGENT_PORT=str(port))
    policy = write_policy(room, "server.toml", server_rule("compress()"))
    with agent.shim(uid=other_uid, policy=policy) as server:
        with in_namespace(inside, lambda: listen("0.0.0.0")) as sock:
            with in_namespace(inside, lambda: listen("0.0.0.0", port)) as door:
                os.close(server.listen_with(sock, inside, door)[2])

        refused = errno.ECONNREFUSED
        eventually(
            lambda: in_namespace(inside, lambda: probe(port)) == refused,
            "the end of a door that is not taken",
        )
        with in_namespace(inside, lambda: listen("0.0.0.0")) as sock:  # now it can have its own
            os.close(server.listen_with(sock, inside)[2])
        assert in_namespace(inside, lambda: probe(port)) == 0


@pytest.mark.net
def test_a_door_on_another_port(start_agent: StartAgent, netns: NamespaceTrio, room: Path, port: int) -> None:
    inside = netns.server.name
    agent = start_agent(room / "s" / "agent.sock", BERTHA_AGENT_PORT=str(port))
    policy = write_policy(room, "server.toml", server_rule("compress()"))

    def open_there(number: int) -> socket.socket:
        return in_namespace(inside, lambda: listen("0.0.0.0", number))

    with open_there(port), open_there(0) as sock, agent.shim(policy=policy) as server:
        with open_there(0) as door:
            where = door.getsockname()
            os.close(server.listen_with(sock, inside, door)[2])
        eventually(
            lambda: in_namespace(inside, lambda: probe(where[1])) == errno.ECONNREFUSED,
            "the end of a socket that is not the agents'",
        )
