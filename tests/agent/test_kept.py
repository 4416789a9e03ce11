"""Connections between agents that are kept for the next question: used, given up, and never trusted."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bertha_socket.agent import addresses, kept
from bertha_socket.agent.kept import Kept, Way
from bertha_socket.agent.loop import READ
from bertha_socket.agent.messages import Verdict
from bertha_socket.agent.talk import Talk
from bertha_socket.negotiation.machine import NO_LISTENER, Asked, Initiator, Responder
from bertha_socket.negotiation.offer import Offer
from tests.agent.conftest import Agent, StartAgent
from tests.agent.shim import Shim, in_namespace, listen
from tests.agent.test_chunnels import client_rule, server_rule, write_policy
from tests.agent.test_remote import agents_port
from tests.agent.test_responder import call, ended, free_port
from tests.harness import NamespaceTrio, eventually

net = pytest.mark.net
KEY = b"k" * 32


_BEFORE: dict[str, int] = {}


@pytest.fixture(autouse=True)
def _counted_from_here(request: pytest.FixtureRequest) -> None:
    """Namespaces serve several tests (tests/harness/namespaces.py)."""
    if "netns" in request.fixturenames:
        name = request.getfixturevalue("netns").server.name
        _BEFORE[name] = 0
        _BEFORE[name] = accepted(name)


def accepted(namespace: str) -> int:
    """TCP connections that were accepted in a namespace, in this test."""

    def read() -> int:
        names, values = (
            line.split()
            for line in Path("/proc/thread-self/net/snmp").read_text().splitlines()
            if "Tcp:" in line
        )
        return int(values[names.index("PassiveOpens")]) - _BEFORE.get(namespace, 0)

    return in_namespace(namespace, read)


class Hosts:
    """A server's host with a policy that requires a chunnel, and a client's, each with its agent."""

    def __init__(self, start: StartAgent, netns: NamespaceTrio, room: Path, **environment: str) -> None:
        self.netns, self.room = netns, room
        self._start, self._environment = start, environment
        self.policy = write_policy(room, "server.toml", server_rule("compress()"))
        self.stack = contextlib.ExitStack()
        self.client = start(room / "c" / "agent.sock", netns=netns.client, **environment)
        self.start_server()

    def start_server(self) -> None:
        self.server = self._start(
            self.room / "s" / "agent.sock", netns=self.netns.server, **self._environment
        )
        self._server_shim = self.stack.enter_context(self.server.shim(policy=self.policy))

    def listener(self) -> int:
        """The port of a new one."""
        name = self.netns.server.name
        sock = in_namespace(name, lambda: self.stack.enter_context(listen("0.0.0.0")))
        os.close(self._server_shim.listen_with(sock, name)[2])
        return int(sock.getsockname()[1])

    def ask(self, shim: Shim, port: int) -> None:
        found = shim.negotiate(self.netns.server.address, port, netns=self.netns.client.name)
        assert found.verdict == Verdict.PLAN and found.types() == ["compress"], found
        # A datagram may have been answered before the connection.
        eventually(lambda: all(self.kept()), "the connection that is kept")

    def kept(self) -> tuple[int, int]:
        """What the client's agent keeps, and what the server's does."""
        return tuple(  # type: ignore[return-value]
            agent.status()["agent"]["kept"][side]
            for agent, side in ((self.client, "to"), (self.server, "from"))
        )


@pytest.fixture
def hosts(start_agent: StartAgent, netns: NamespaceTrio, room: Path) -> Iterator[Hosts]:
    found = Hosts(start_agent, netns, room)
    with found.stack:
        yield found


@net
def test_a_second_listener_costs_no_connection(hosts: Hosts) -> None:
    """Also for another program, of another user."""
    with hosts.client.shim() as one, hosts.client.shim(name="other") as two:
        for shim in (one, two, one):
            hosts.ask(shim, hosts.listener())
    assert accepted(hosts.netns.server.name) == 1
    assert hosts.kept() == (1, 1)
    assert hosts.server.status()["agent"]["answered"] == 3


@net
def test_with_a_cluster_key(start_agent: StartAgent, netns: NamespaceTrio, room: Path) -> None:
    """Each question is authenticated by itself: a key that is changed at one end counts from the next on."""
    key = room / "cluster.key"
    key.touch(mode=0o600)
    key.write_bytes(KEY)
    hosts = Hosts(start_agent, netns, room, BERTHA_CLUSTER_KEY=str(key))
    with hosts.stack, hosts.client.shim() as shim:
        for _ in range(2):
            hosts.ask(shim, hosts.listener())
        assert accepted(netns.server.name) == 1
        with call_from(netns.client.name, netns.server.address, 7277) as sock:
            sock.sendall(Initiator(netns.server.address, 9, Offer(), KEY).outgoing())
            assert sock.recv(65536)
            key.write_bytes(b"o" * 32)
            machine = Initiator(netns.server.address, 9, Offer(), KEY)
            sock.sendall(machine.outgoing())
            machine.receive(sock.recv(65536))
            assert "keys differ" in str(machine.event())
            assert ended(sock)
        hosts.ask(shim, hosts.listener())


def call_from(namespace: str, host: str, port: int) -> socket.socket:
    return in_namespace(namespace, lambda: socket.create_connection((host, port), 10))


@net
def test_the_other_agent_has_begun_anew(hosts: Hosts) -> None:
    with hosts.client.shim() as shim:
        hosts.ask(shim, hosts.listener())
        hosts.server.process.kill()
        hosts.server.process.wait(10)
        eventually(lambda: hosts.client.status()["agent"]["kept"]["to"] == 0, "the end of what was kept")
        hosts.start_server()
        hosts.ask(shim, hosts.listener())
    assert accepted(hosts.netns.server.name) == 2
    assert hosts.kept() == (1, 1)
    hosts.server.process.terminate()  # start_agent minds one that was killed
    assert hosts.server.process.wait(10) == 0


@net
def test_a_host_that_has_gone(hosts: Hosts) -> None:
    """Nothing comes back by what was kept, nor otherwise: it takes no longer than one that is not there."""
    policy = write_policy(hosts.room, "client.toml", client_rule("compress()"))
    with hosts.client.shim(policy=policy) as shim:
        hosts.ask(shim, hosts.listener())
        words = ["ip", "-n", hosts.netns.server.name, "link", "set", "v0", "down"]
        subprocess.run(words, check=True, timeout=20)
        begun = time.monotonic()
        found = shim.negotiate(hosts.netns.server.address, 9, netns=hosts.netns.client.name)
        assert time.monotonic() - begun < 2.0, "1.2 seconds are what a host has that is not there"
        assert found.verdict == Verdict.REFUSED and "no agent answers there" in found.detail, found
    assert hosts.client.status()["agent"]["kept"]["to"] == 0


@net
def test_in_a_container_it_is_its_programs_own(
    start_agent: StartAgent, netns: NamespaceTrio, room: Path
) -> None:
    """The program has the socket too: nobody else is to rely on it, and the namespace must be free to go."""
    client = start_agent(room / "c" / "agent.sock")
    server = start_agent(room / "s" / "agent.sock", netns=netns.server)
    with client.shim() as one, client.shim() as two:
        for shim, port, kept in ((one, 1, 1), (one, 2, 1), (two, 3, 2), (two, 4, 2)):
            found = shim.negotiate(netns.server.address, port, netns=netns.client.name)
            assert found.verdict == Verdict.PLAIN and "listens there" in found.detail, found
            eventually(lambda kept=kept: client.status()["agent"]["kept"]["to"] == kept, "what is kept")
    assert accepted(netns.server.name) == 2
    eventually(lambda: client.status()["agent"]["kept"]["to"] == 0, "their end with their programs")
    eventually(lambda: server.status()["agent"]["kept"]["from"] == 0, "the end at the other host")


# -- an agent that fails in the middle --------------------------

Spoil = Callable[[socket.socket, bytes, bytes], None]


def falls_silent(sock: socket.socket, answer: bytes, before: bytes) -> None:
    pass


def hangs_up(sock: socket.socket, answer: bytes, before: bytes) -> None:
    sock.shutdown(socket.SHUT_WR)


def resets(sock: socket.socket, answer: bytes, before: bytes) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sock.close()


def says_half(sock: socket.socket, answer: bytes, before: bytes) -> None:
    sock.sendall(answer[: len(answer) // 2])


def says_half_and_ends(sock: socket.socket, answer: bytes, before: bytes) -> None:
    sock.sendall(answer[: len(answer) // 2])
    sock.shutdown(socket.SHUT_WR)


def says_what_it_said_before(sock: socket.socket, answer: bytes, before: bytes) -> None:
    sock.sendall(before)


def says_anything(sock: socket.socket, answer: bytes, before: bytes) -> None:
    sock.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


class Double:
    """In the place of the server's agent.  The first question by a connection is answered (NO_LISTENER);
    what becomes of the second one `spoil` decides.  `deaf`: later connections are not answered at all."""

    def __init__(self, listening: socket.socket, spoil: Spoil, *, deaf: bool = False) -> None:
        self.asked: list[tuple[int, int]] = []  # (connection, port)
        self.connections = 0
        self._listening, self._spoil, self._deaf = listening, spoil, deaf
        self._socks: list[socket.socket] = []
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Double:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        for sock in self._socks:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(20)
        for sock in self._socks:
            sock.close()

    def _run(self) -> None:
        threads = []
        with contextlib.suppress(OSError):  # the end
            while True:
                sock, _ = self._listening.accept()
                self._socks.append(sock)
                sock.settimeout(20)
                self.connections += 1
                threads.append(threading.Thread(target=self._serve, args=(sock, self.connections)))
                threads[-1].start()
        for thread in threads:
            thread.join(20)

    def _serve(self, sock: socket.socket, number: int) -> None:
        said: list[bytes] = []
        while not (self._deaf and number > 1):
            machine = Responder(None)
            while (event := machine.event()) is None:
                try:
                    data = sock.recv(65536)
                except OSError:
                    return
                if not data:
                    return
                machine.receive(data)
            assert isinstance(event, Asked)
            self.asked.append((number, event.port))
            machine.answer(NO_LISTENER)
            said.append(machine.outgoing())
            if len(said) > 1 and number == 1:
                self._spoil(sock, said[-1], said[0])
                return
            sock.sendall(said[-1])


SPOILS = [
    falls_silent,
    hangs_up,
    resets,
    says_half,
    says_half_and_ends,
    says_what_it_said_before,
    says_anything,
]


@pytest.fixture
def asker(start_agent: StartAgent, netns: NamespaceTrio, room: Path) -> Agent:
    return start_agent(room / "c" / "agent.sock", netns=netns.client)


@net
@pytest.mark.parametrize("spoil", SPOILS, ids=lambda s: s.__name__)
def test_once_more_by_a_fresh_connection(asker: Agent, netns: NamespaceTrio, spoil: Spoil) -> None:
    with agents_port(netns) as sock, Double(sock, spoil) as double, asker.shim() as shim:
        for port in (1, 2, 3):
            begun = time.monotonic()
            found = shim.negotiate(netns.server.address, port, netns=netns.client.name)
            assert "no program under bertha-run listens there" in found.detail, found
            assert time.monotonic() - begun < 1.4
        asked = [(1, 1), (1, 2), (2, 2), (2, 3)]
        late = [*asked, (3, 3)]  # the new one's answer was not there in time, on a busy machine
        assert double.asked in (asked, late), "again once, and from then on by the new one"
    assert asker.status()["agent"]["faults"] == 0


@net
@pytest.mark.parametrize("spoil", [falls_silent, hangs_up, says_half], ids=lambda s: s.__name__)
def test_and_no_more_than_once(asker: Agent, netns: NamespaceTrio, spoil: Spoil) -> None:
    with agents_port(netns) as sock, Double(sock, spoil, deaf=True) as double, asker.shim() as shim:
        shim.negotiate(netns.server.address, 1, netns=netns.client.name)
        begun = time.monotonic()
        found = shim.negotiate(netns.server.address, 2, netns=netns.client.name)
        assert found.verdict == Verdict.PLAIN and "does not answer" in found.detail, found
        assert time.monotonic() - begun < 2.5, "1.5 seconds are what an agent has that has accepted"
        assert double.connections == 2
    assert asker.status()["agent"]["faults"] == 0


@net
def test_words_that_nobody_asked_for(asker: Agent, netns: NamespaceTrio) -> None:
    """What rests is not kept once it says something; what comes behind an answer is no next answer."""

    def and_more(sock: socket.socket, answer: bytes, before: bytes) -> None:
        sock.sendall(answer + answer)

    with agents_port(netns) as sock, Double(sock, and_more) as double, asker.shim() as shim:
        for port in (1, 2, 3):
            shim.negotiate(netns.server.address, port, netns=netns.client.name)
        assert double.asked == [(1, 1), (1, 2), (2, 3)]


# -- the responder ----------------------------------------------


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def open_agent(start_agent: StartAgent, port: int) -> Agent:
    return start_agent(BERTHA_AGENT_PORT=str(port))


def resting(port: int) -> socket.socket:
    """A connection that has had its answer."""
    sock = socket.create_connection(("127.0.0.1", port), 10)
    machine = Initiator("127.0.0.1", 9, Offer())
    sock.sendall(machine.outgoing())
    while not machine.finished:
        machine.receive(sock.recv(65536))
    assert machine.event() is NO_LISTENER
    return sock


def test_who_rests_makes_room(open_agent: Agent, port: int) -> None:
    with contextlib.ExitStack() as stack:
        socks = [stack.enter_context(resting(port)) for _ in range(8)]
        assert open_agent.status()["agent"]["kept"]["from"] == 8
        assert call(port, Initiator("127.0.0.1", 9, Offer())) is NO_LISTENER
        assert ended(socks[0]), "the one that has rested longest goes"
        machine = Initiator("127.0.0.1", 9, Offer())
        socks[1].sendall(machine.outgoing())
        machine.receive(socks[1].recv(65536))
        assert machine.event() is NO_LISTENER, "the others may ask"
    eventually(lambda: open_agent.status()["agent"]["kept"]["from"] == 0, "their end")


def test_one_question_at_a_time(open_agent: Agent, port: int) -> None:
    with resting(port) as sock:
        first = Initiator("127.0.0.1", 9, Offer())
        sock.sendall(first.outgoing() + Initiator("127.0.0.1", 9, Offer()).outgoing())
        assert ended(sock)
    with resting(port) as sock:
        sock.sendall(b"\0\0\0")
        sock.shutdown(socket.SHUT_WR)
        assert ended(sock)
    with resting(port) as sock:  # it has begun to ask, and goes on too slowly
        sock.sendall(Initiator("127.0.0.1", 9, Offer()).outgoing()[:20])
        assert ended(sock)
    assert open_agent.status()["agent"]["faults"] == 0


# -- how many, and for how long ---------------------------------


class QuietLoop:
    """A loop in which nothing happens."""

    now = 1000.0

    def watch(self, what: socket.socket | int, call: Callable[[], None], events: int = READ) -> None:
        pass

    def unwatch(self, what: socket.socket | int) -> None:
        pass


def test_not_for_ever_and_not_many() -> None:
    loop = QuietLoop()
    pool = Kept(loop)
    assert pool.deadline() is None

    def add(host: int) -> Talk:
        near, far = socket.socketpair()
        far.close()
        talk = Talk(loop, near)
        pool.put(way(host), talk)
        return talk

    def way(host: int) -> Way:
        return Way(1, addresses.from_text(f"10.0.{host // 250}.{host % 250}"), None)

    first, second, third = add(0), add(0), add(0)
    assert (first.closed, second.closed, third.closed) == (True, False, False)
    assert pool.take(way(1)) is None
    assert pool.take(way(0)) is third and pool.take(way(0)) is second and pool.take(way(0)) is None
    second.close()
    third.close()
    talks = [add(host) for host in range(kept.KEPT_MAX + 1)]
    assert len(pool) == kept.KEPT_MAX
    assert talks[0].closed and not talks[1].closed
    assert pool.deadline() == loop.now + kept.KEPT_SECONDS
    loop.now += kept.KEPT_SECONDS
    assert pool.take(way(5)) is None, "its time is up, though nobody has closed it yet"
    pool.tick(loop.now)
    assert len(pool) == 0 and all(talk.closed for talk in talks)
    last = add(1)
    pool.close()
    assert last.closed
