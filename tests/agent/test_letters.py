"""The first question to a host goes by a datagram as well: one round trip where that is answered, and never
anything that a connection would not have said."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bertha_socket._bench import chunnel_setup
from bertha_socket._native import lib
from bertha_socket.agent import addresses, letters, memory, messages
from bertha_socket.agent.letters import Letterbox
from bertha_socket.agent.loop import READ
from bertha_socket.agent.messages import Verdict
from bertha_socket.agent.reach import Reach
from bertha_socket.agent.secrets import Secrets
from bertha_socket.chunnels._registry import all_types
from bertha_socket.dag import parse
from bertha_socket.negotiation import datagram
from bertha_socket.negotiation.choose import choose
from bertha_socket.negotiation.datagram import QUESTION_SIZE
from bertha_socket.negotiation.machine import NO_LISTENER, Asked, Initiator, Responder
from bertha_socket.negotiation.messages import Trouble, encode, frame
from bertha_socket.negotiation.offer import Offer, offer_of
from bertha_socket.negotiation.plan import Plan
from bertha_socket.reasons import Reason
from tests.agent.conftest import Agent, StartAgent
from tests.agent.shim import Negotiated, in_namespace, listen
from tests.agent.test_chunnels import client_rule, server_rule, write_policy
from tests.agent.test_remote import AGENTS, agents_port
from tests.conftest import MakeHost
from tests.harness import NamespaceTrio, connections, eventually, free_port

pytestmark = pytest.mark.net
KEY = b"k" * 32
#: Chosen by the double, as an agent would: with what the client offers.
PLAN = "a plan"


def bound(host: str = "0.0.0.0", port: int = AGENTS) -> socket.socket:
    sock = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
    try:
        sock.bind((host, port))
    except OSError:
        sock.close()
        raise
    sock.settimeout(20)
    return sock


def cluster_key(room: Path, name: str = "cluster.key", key: bytes = KEY) -> str:
    path = room / name
    path.touch(mode=0o600)
    path.write_bytes(key)
    return str(path)


Replies = Callable[[bytes], list[bytes]]


class Double:
    """In the place of the other host's agent.  A question by datagram has the `replies`; one by a
    connection waits until `connections` is set, and is then answered that nobody listens there."""

    def __init__(
        self, netns: NamespaceTrio, replies: Replies, key: bytes | None = None, *, then: bool = False
    ) -> None:
        """`then`: connections are answered once a datagram has been."""
        self._then = then
        self.letters = self.connected = 0
        self.connections, self._ended = threading.Event(), threading.Event()
        self._replies, self._key = replies, key
        self._stack = contextlib.ExitStack()
        self._udp = self._stack.enter_context(in_namespace(netns.server.name, bound))
        self._tcp = self._stack.enter_context(agents_port(netns))
        self._threads = [threading.Thread(target=work) for work in (self._read, self._accept)]

    def __enter__(self) -> Double:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.connections.set()
        self._ended.set()
        self._tcp.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(20)
        self._stack.close()

    def _read(self) -> None:
        self._udp.settimeout(0.05)
        while not self._ended.is_set():
            with contextlib.suppress(TimeoutError):
                data, peer = self._udp.recvfrom(2000)
                self.letters += 1
                for reply in self._replies(data):
                    self._udp.sendto(reply, peer)
                if self._then:
                    self.connections.set()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = self._tcp.accept()
                self.connected += 1
                with sock:
                    self.connections.wait(20)
                    sock.settimeout(20)
                    machine = Responder(self._key)
                    while (event := machine.event()) is None:
                        machine.receive(sock.recv(65536))
                    if isinstance(event, Asked):
                        machine.answer(NO_LISTENER)
                    sock.sendall(machine.outgoing())
                    self._ended.wait(20)


def plan_for(client: Offer) -> Plan:
    found = choose(client, offer_of(parse("compress()"), all_types()))
    assert isinstance(found, Plan) and found.chunnels
    return found


def answers(answer: object, key: bytes | None = None) -> Replies:
    """As an agent would."""

    def replies(data: bytes) -> list[bytes]:
        frames = datagram.asked(data)
        assert frames is not None and len(data) == QUESTION_SIZE
        machine = Responder(key)
        machine.receive(frames)
        event = machine.event()
        assert isinstance(event, Asked)
        machine.answer(plan_for(event.offer) if answer is PLAN else answer)  # type: ignore[arg-type]
        found = datagram.answer(machine.outgoing())
        assert found is not None
        return [found]

    return replies


@pytest.fixture
def asker(start_agent: StartAgent, netns: NamespaceTrio, room: Path) -> Agent:
    return start_agent(room / "c" / "agent.sock", netns=netns.client)


def ask(agent: Agent, netns: NamespaceTrio, port: int = 80, *, policy: str = "") -> Negotiated:
    with agent.shim(policy=policy) as shim:
        return shim.negotiate(netns.server.address, port, netns=netns.client.name)


def test_one_round_trip(asker: Agent, netns: NamespaceTrio) -> None:
    """One datagram there and one back are all that was needed: nothing has been said by the connection."""
    with Double(netns, answers(PLAN)) as double:
        found = ask(asker, netns)
        assert found.verdict == Verdict.PLAN and found.types() == ["compress"], found
        assert double.letters == 1 and not double.connections.is_set()
        assert asker.status()["agent"]["kept"]["to"] == 0
        double.connections.set()
        eventually(
            lambda: asker.status()["agent"]["kept"]["to"] == 1, "the connection, for the next question"
        )
        assert ask(asker, netns).plan == found.plan, "what the connection says later changes nothing"
        assert double.connected == 1
    assert asker.status()["agent"]["faults"] == 0


def test_counted_on_the_wire(asker: Agent, server: Agent, netns: NamespaceTrio) -> None:
    """Between two agents: out and in, once; by a connection alone it is that twice."""
    script = Path(chunnel_setup.__file__).with_name("flights.py")
    command = netns.client.wrap([sys.executable, str(script), netns.client.address])
    watching = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with watching:
        assert watching.stdout is not None and watching.stdout.readline() == "ready\n"
        assert "listens there" in ask(asker, netns).detail
        eventually(lambda: asker.status()["agent"]["kept"]["to"] == 1, "the connection's answer")
        said, _ = watching.communicate(timeout=20)
    flights = json.loads(said)["flights"]
    assert chunnel_setup.round_trips(chunnel_setup.waited_for(flights), AGENTS) == 1, flights
    assert chunnel_setup.round_trips([f for f in flights if f[3] == "tcp"], AGENTS) == 2, flights


def test_with_a_cluster_key(start_agent: StartAgent, netns: NamespaceTrio, room: Path) -> None:
    agent = start_agent(room / "c" / "agent.sock", netns=netns.client, BERTHA_CLUSTER_KEY=cluster_key(room))
    with Double(netns, answers(PLAN, KEY), KEY):
        assert ask(agent, netns).types() == ["compress"]


def test_in_a_container(start_agent: StartAgent, netns: NamespaceTrio, room: Path) -> None:
    """By the socket that the shim has passed."""
    agent = start_agent(room / "c" / "agent.sock")
    with Double(netns, answers(PLAN)):
        assert ask(agent, netns).types() == ["compress"]


def other_question(data: bytes) -> bytes:
    machine = Initiator("10.0.0.1", 80, Offer())
    sent = datagram.question(machine.outgoing())
    assert sent is not None
    return sent


def error(data: bytes) -> list[bytes]:
    """What anybody can say, and is believed on a connection."""
    made = datagram.answer(frame(bytes(32), encode(Trouble("there is nothing here"))))
    assert made is not None
    return [made]


FORGERIES: dict[str, Replies] = {
    "nothing": lambda data: [],
    "garbage": lambda data: [b"", b"\xbeBRA!", b"\xbeBRA!" + data[5:], os.urandom(300)],
    "echo": lambda data: [data],
    "error": error,
    "another conversation": lambda data: answers(Plan())(other_question(data)),
    "too much": lambda data: [answers(PLAN)(data)[0].ljust(QUESTION_SIZE + 1, b"\0")],
    "half": lambda data: [answers(PLAN)(data)[0][:-20]],
}


@pytest.mark.parametrize("name", FORGERIES)
def test_what_is_not_believed(asker: Agent, netns: NamespaceTrio, name: str) -> None:
    """As if it had not come: the connection is asked, and its answer counts."""
    with Double(netns, FORGERIES[name], then=True) as double:
        found = ask(asker, netns)
        assert found.verdict == Verdict.PLAIN and "listens there" in found.detail, found
        assert double.letters == 1
    assert asker.status()["agent"]["faults"] == 0


@pytest.mark.parametrize("key", [None, b"o" * 32], ids=["none", "another"])
def test_who_has_not_the_key(
    start_agent: StartAgent, netns: NamespaceTrio, room: Path, key: bytes | None
) -> None:
    """A forger says that there is nothing to be had; the connection's answer is the one with the key."""
    agent = start_agent(room / "c" / "agent.sock", netns=netns.client, BERTHA_CLUSTER_KEY=cluster_key(room))

    def forge(data: bytes) -> list[bytes]:
        frames = datagram.asked(data)
        assert frames is not None
        machine = Responder(KEY)  # whose words the forger has seen, and alters
        machine.receive(frames)
        machine.answer(Plan())
        forger = Initiator("10.0.0.1", 80, Offer(), key)
        other = Responder(key)
        other.receive(forger.outgoing())
        other.answer(Plan())
        made = [datagram.answer(x) for x in (other.outgoing(), machine.outgoing()[:-1] + b"\0")]
        return [m for m in made if m is not None]

    with Double(netns, forge, KEY, then=True) as double:
        found = ask(agent, netns)
        assert found.verdict == Verdict.PLAIN and "listens there" in found.detail, found
        assert double.letters == 1


def test_a_plan_that_lacks_what_is_required(asker: Agent, netns: NamespaceTrio, room: Path) -> None:
    policy = write_policy(room, "client.toml", client_rule("compress()"))
    with Double(netns, answers(Plan())):
        found = ask(asker, netns, policy=policy)
        assert found.verdict == Verdict.REFUSED and "compress" in found.detail


def test_a_host_without_an_agent(asker: Agent, netns: NamespaceTrio) -> None:
    """It is found out by its kernel's no to the connection, and nothing is left open."""
    before = asker.descriptors()
    found = ask(asker, netns)
    assert found.verdict == Verdict.PLAIN and "Connection refused" in found.detail, found
    eventually(lambda: asker.descriptors() <= before, "its sockets' end")


# -- the responder ------------------------------------------------------------------------------------


@pytest.fixture
def server(start_agent: StartAgent, netns: NamespaceTrio, room: Path) -> Agent:
    return start_agent(room / "s" / "agent.sock", netns=netns.server)


@pytest.fixture
def stranger(netns: NamespaceTrio) -> Iterator[socket.socket]:
    """On the client's host."""
    with in_namespace(netns.client.name, lambda: bound(port=0)) as sock:
        yield sock


def question(
    netns: NamespaceTrio, port: int, key: bytes | None = None, offer: Offer | None = None
) -> tuple[Initiator, bytes]:
    machine = Initiator(netns.server.address, port, offer or Offer(), key)
    sent = datagram.question(machine.outgoing())
    assert sent is not None
    return machine, sent


def answer_of(sock: socket.socket, machine: Initiator) -> object:
    frames = datagram.answered(sock.recv(2000))
    assert frames is not None
    machine.receive(frames)
    return machine.event()


def test_a_stranger_asks(server: Agent, netns: NamespaceTrio, stranger: socket.socket) -> None:
    where = (netns.server.address, AGENTS)
    machine, sent = question(netns, 80)
    twice = datagram.question(2 * machine.again().outgoing())
    assert twice is not None
    for junk in (
        b"",
        b"?",
        sent[:-1],
        sent + b"\0",
        os.urandom(QUESTION_SIZE),
        b"\xbeBRA!" + sent[5:],
        twice,
    ):
        stranger.sendto(junk, where)
    stranger.sendto(sent, where)
    assert answer_of(stranger, machine) is NO_LISTENER
    stranger.settimeout(0.2)
    with pytest.raises(TimeoutError):  # the junk has had no answer
        stranger.recv(2000)
    assert server.status()["agent"]["faults"] == 0


@pytest.mark.parametrize("keyed", [False, True])
def test_a_strangers_wish_changes_nothing(
    start_agent: StartAgent, netns: NamespaceTrio, room: Path, stranger: socket.socket, keyed: bool
) -> None:
    """Who forges an address must not send a plain listener's connections to a carrier, which waits for what
    its clients say first.  Who has the key may, and so may who is connected."""
    env = {"BERTHA_CLUSTER_KEY": cluster_key(room)} if keyed else {}
    agent = start_agent(room / "s" / "agent.sock", netns=netns.server, **env)
    offer = offer_of(parse("prefer compress()"), all_types())
    with agent.shim() as shim, in_namespace(netns.server.name, lambda: listen("0.0.0.0")) as sock:
        claims = shim.listen_with(sock, netns.server.name)[2]
        port = sock.getsockname()[1]

        def need() -> int:
            return int.from_bytes(os.pread(claims, 4, lib.OFFSETOF_claims_dag), sys.byteorder)

        stranger.settimeout(1)
        machine, sent = question(netns, port, KEY if keyed else None, offer)
        stranger.sendto(sent, (netns.server.address, AGENTS))
        try:
            answer = answer_of(stranger, machine)
        except TimeoutError:
            answer = None
        assert isinstance(answer, Plan) == keyed
        assert need() == (messages.DagNeed.MAYBE if keyed else messages.DagNeed.NONE)
        if not keyed:
            client = start_agent(room / "c" / "agent.sock", netns=netns.client)
            policy = write_policy(room, "client.toml", client_rule("prefer compress()"))
            assert ask(client, netns, port, policy=policy).verdict == Verdict.PLAN
            assert need() == messages.DagNeed.MAYBE
            machine, sent = question(netns, port, None, offer)
            stranger.sendto(sent, (netns.server.address, AGENTS))
            assert isinstance(answer_of(stranger, machine), Plan), "from then on it costs nothing"
        os.close(claims)
    assert agent.status()["agent"]["faults"] == 0


def test_the_wrong_key_has_no_answer(
    start_agent: StartAgent, netns: NamespaceTrio, room: Path, stranger: socket.socket
) -> None:
    start_agent(room / "s" / "agent.sock", netns=netns.server, BERTHA_CLUSTER_KEY=cluster_key(room))
    where = (netns.server.address, AGENTS)
    for key in (None, b"o" * 32):
        stranger.sendto(question(netns, 80, key)[1], where)
    machine, sent = question(netns, 80, KEY)
    stranger.sendto(sent, where)
    assert answer_of(stranger, machine) is NO_LISTENER, "the first answer is to the last question"


def test_the_address_that_was_asked_answers(
    server: Agent, netns: NamespaceTrio, stranger: socket.socket
) -> None:
    """Not the one that the kernel would choose: who asks takes an answer from nowhere else."""
    other = netns.server.address.rpartition(".")[0] + ".99"
    for words in (("addr", "add", f"{other}/24", "dev", "v0"),):
        subprocess.run(["ip", "-n", netns.server.name, *words], check=True, timeout=20)
    for address in (other, netns.server.address):
        machine, sent = question(netns, 80)
        stranger.connect((address, AGENTS))
        stranger.send(sent)
        assert answer_of(stranger, machine) is NO_LISTENER


def test_over_ipv6(start_agent: StartAgent) -> None:
    port = free_port()
    start_agent(BERTHA_AGENT_PORT=str(port))
    with bound("::1", 0) as sock:
        sock.connect(("::1", port))
        machine = Initiator("::1", 80, Offer())
        sent = datagram.question(machine.outgoing())
        assert sent is not None
        sock.send(sent)
        assert answer_of(sock, machine) is NO_LISTENER


def test_what_a_shim_passes_is_looked_at(asker: Agent, netns: NamespaceTrio) -> None:
    """A socket for datagrams of its own namespace, which nobody has connected."""

    def passed() -> tuple[socket.socket, ...]:
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.connect(("127.0.0.1", 9))
        kinds = (socket.SOCK_STREAM, socket.SOCK_STREAM, socket.SOCK_DGRAM)
        return (*(socket.socket(socket.AF_INET, kind) for kind in kinds), udp)

    with contextlib.ExitStack() as stack:
        tcp, tcp_too, udp, connected = map(stack.enter_context, in_namespace(netns.client.name, passed))
        elsewhere = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        cookie = memory.netns_cookie(tcp.fileno())
        body = messages.NEGOTIATE.pack(addresses.from_text(netns.server.address), 80, 0, 300, cookie)
        with asker.shim() as shim:
            for other in (tcp_too, connected, elsewhere):
                reply = shim.ask(messages.Op.NEGOTIATE, body, (tcp.fileno(), other.fileno()))
                assert reply.status == Reason.REFUSED_BY_AGENT
            assert shim.ask(messages.Op.NEGOTIATE, body, (tcp.fileno(), udp.fileno())).status == 0


def test_one_question_by_two_ways_is_answered_once(
    server: Agent, netns: NamespaceTrio, room: Path, stranger: socket.socket
) -> None:
    policy = write_policy(room, "server.toml", server_rule("compress()"))
    with server.shim(policy=policy) as shim:
        with in_namespace(netns.server.name, lambda: listen("0.0.0.0")) as sock:
            os.close(shim.listen_with(sock, netns.server.name)[2])
            machine, sent = question(netns, sock.getsockname()[1])
            twin = machine.again()
            stranger.sendto(sent, (netns.server.address, AGENTS))
            first = answer_of(stranger, machine)
            where = (netns.server.address, AGENTS)
            with in_namespace(netns.client.name, lambda: socket.create_connection(where, 10)) as door:
                door.sendall(twin.outgoing())
                while not twin.finished:
                    twin.receive(door.recv(65536))
            assert twin.event() == first and not isinstance(first, type(NO_LISTENER))
    assert server.status()["agent"]["answered"] == 1


def test_the_port_of_another_namespace(
    start_agent: StartAgent, netns: NamespaceTrio, room: Path, stranger: socket.socket
) -> None:
    """A shim there passes a socket, which is given up when nobody listens there any more."""
    port = free_port()
    agent = start_agent(room / "s" / "agent.sock", BERTHA_AGENT_PORT=str(port))
    policy = write_policy(room, "server.toml", server_rule("compress()"))
    inside = netns.server.name
    with agent.shim(policy=policy) as shim, contextlib.ExitStack() as stack:
        sock = stack.enter_context(in_namespace(inside, lambda: listen("0.0.0.0")))
        with (
            in_namespace(inside, lambda: listen("0.0.0.0", port)) as door,
            in_namespace(inside, lambda: bound(port=port)) as box,
        ):
            reply = shim.try_listen(sock, inside, door, box)
            assert reply.status == 0
            os.close(reply.fds[0])
        machine, sent = question(netns, 9)
        stranger.sendto(sent, (netns.server.address, port))
        assert answer_of(stranger, machine) is NO_LISTENER

    def left() -> bool:
        with contextlib.suppress(OSError):
            in_namespace(inside, lambda: bound(port=port)).close()
            return True
        return False

    eventually(left, "the port's end")


class QuietLoop:
    now = 1000.0

    def watch(self, what: socket.socket | int, call: Callable[[], None], events: int = READ) -> None:
        self.call = call

    def unwatch(self, what: socket.socket | int) -> None:
        pass


def test_not_any_number_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who floods it takes its time for a while only; connections are answered as ever."""
    monkeypatch.setattr(Secrets, "cluster_key", lambda self: None)
    loop, decided = QuietLoop(), []

    def decide(netns: int, machine: Responder, asked: Asked, genuine: bool) -> object:
        decided.append(asked.port)
        return NO_LISTENER

    box = Letterbox(loop, Secrets(), Reach(()), decide, lambda *_: None)  # type: ignore[arg-type]
    with bound("127.0.0.1", 0) as there, bound("127.0.0.1", 0) as here:
        box.open(1, there.dup())
        sent = datagram.question(Initiator("127.0.0.1", 80, Offer()).outgoing())
        assert sent is not None

        def flood(count: int) -> int:
            before = len(decided)
            for _ in range(count):
                here.sendto(sent, there.getsockname())
                loop.call()
            return len(decided) - before

        assert flood(200) == 2 * letters._RATE
        loop.now += 0.5
        assert flood(200) == letters._RATE / 2
        box.close_all()


# -- programs -----------------------------------------------------------------------------------------

_CONNECT = "import socket, sys; socket.create_connection((sys.argv[1], int(sys.argv[2]))).close()"
_LISTEN = "import socket, sys; s = socket.create_server(('0.0.0.0', int(sys.argv[1]))); sys.stdin.read()"


def test_a_program_in_a_container_asks(netns: NamespaceTrio, make_host: MakeHost) -> None:
    """Its shim has passed a socket for the datagram; by connections nothing is answered."""
    host = make_host()
    with Double(netns, answers(NO_LISTENER)) as double:
        with in_namespace(netns.server.name, lambda: listen("0.0.0.0")) as sock:
            command = [sys.executable, "-c", _CONNECT, netns.server.address, sock.getsockname()[1]]
            host.run(command, netns=netns.client)
        assert double.letters == 1
        (found,) = connections(host.finish(), role="client")
    assert found.plain and "no program under bertha-run listens there" in (found.reason or ""), found


def leave_a_connection_in_time_wait(netns: NamespaceTrio) -> None:
    """As an earlier program's agent leaves it on the agents' port for a minute."""
    with in_namespace(netns.server.name, lambda: socket.create_server(("0.0.0.0", AGENTS))) as listener:
        where = (netns.server.address, AGENTS)
        with in_namespace(netns.client.name, lambda: socket.create_connection(where, 10)) as client:
            listener.accept()[0].close()
            assert client.recv(1) == b""


@pytest.mark.parametrize("door", ["shim", "new"])
def test_a_program_in_a_container_is_asked_about(
    netns: NamespaceTrio, make_host: MakeHost, stranger: socket.socket, door: str
) -> None:
    host = make_host()
    host.set_policy('[[rule]]\nside = "server"\ndag = "compress()"\n')
    port = free_port()
    leave_a_connection_in_time_wait(netns)
    if door == "shim":
        program = host.spawn([sys.executable, "-c", _LISTEN, port], netns=netns.server, stdin=subprocess.PIPE)
    else:
        script = (
            "import sys, bertha_socket\n"
            "end = bertha_socket.new('there', 'compress()')\n"
            f"listener = end.listen(('{netns.server.address}', {port}))\n"
            "sys.stdin.read()\n"
        )
        command = [sys.executable, "-c", script]
        program = host.spawn(command, netns=netns.server, stdin=subprocess.PIPE, shim=False)

    def answered() -> object:
        machine, sent = question(netns, port)
        stranger.sendto(sent, (netns.server.address, AGENTS))
        stranger.settimeout(1)
        with contextlib.suppress(OSError):
            event = answer_of(stranger, machine)
            return event is not NO_LISTENER and event
        return None

    found = eventually(answered, "the listener's answer", 20)
    assert "compress" in str(found)
    assert program.process.stdin is not None
    program.process.stdin.close()
    program.wait(20)
