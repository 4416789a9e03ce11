"""Carriers of UDP sockets, in C and in Python: what both do, on a network that is the test's."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import random
import select
import signal
import socket
import struct
import sys
import termios
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import ClassVar, Final

import pytest

from bertha_socket.carrier import envelope
from bertha_socket.carrier.envelope import Envelope, Kind
from bertha_socket.chunnels import reliable
from tests.carrier.conftest import _COMMANDS, KEY, NATIVE, MakeCarrier
from tests.carrier.host import (
    MAYBE,
    PLAN,
    READY,
    REFUSED,
    REQUIRED,
    CarrierHost,
    chunnel,
    plan_of,
)
from tests.carrier.host import PLAIN as PASSED

pytestmark = [
    pytest.mark.skipif(not NATIVE.exists(), reason="the native carrier is not built here"),
    pytest.mark.alone,  # waits for silence, and counts what comes within a second
]

HEAD: Final = struct.Struct("=HHHHIIQ16s")
DATA, TELL, ERROR, REFUSAL, NO_AGENT, BESIDE = 1, 2, 3, 4, 5, 6
UDP_SEGMENT, UDP_GRO, SO_TIMESTAMP = 103, 104, 29  # udp(7), socket(7)
RELIABLE = plan_of(chunnel("reliable", "brel/1", "native", mtu=1200, give_up=30.0))
_SIOCOUTQ: Final = termios.TIOCOUTQ
LARGE = plan_of(chunnel("reliable", "brel/1", "native", mtu=60_000, give_up=30.0))
_V4 = bytes(10) + b"\xff\xff"
Name = tuple[str, int]


def head(kind: int, name: Name, value: int = 0) -> bytes:
    """As struct bertha_dgram."""
    return HEAD.pack(0xBD47, kind, name[1], 0, 0, 0, value, _V4 + socket.inet_aton(name[0]))


def _unread(sock: socket.socket, what: int) -> int:
    return int.from_bytes(fcntl.ioctl(sock, what, bytes(4)), sys.byteorder)


class Program:
    """A program's end of a carried UDP socket."""

    def __init__(self, host: CarrierHost, mode: int, options: Iterable[tuple[int, int]] = ()) -> None:
        self.host = host
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.bind(("127.0.0.1", 0))
            self.name: Name = udp.getsockname()
            for level, option in options:
                udp.setsockopt(level, option, 1)
            self.pair, self.status = host.carry_datagrams(udp, mode=mode)
            self.udp = udp.dup()  # as the shim has one, too
        self.pair.settimeout(20)
        end = time.monotonic() + 20
        while _unread(host.shim, _SIOCOUTQ):
            assert time.monotonic() < end, "a carrier that has begun"
            time.sleep(0.002)

    def has_read(self) -> None:
        """Waits until its carrier has what strangers have sent."""
        end = time.monotonic() + 20
        while _unread(self.udp, termios.FIONREAD):
            assert time.monotonic() < end, "a carrier that reads"
            time.sleep(0.002)

    def close(self) -> None:
        self.pair.close()
        self.udp.close()

    def plan(self, to: Name, plan: bytes = RELIABLE) -> None:
        self.pair.send(head(TELL, to) + plan)

    def send(self, to: Name, data: bytes) -> None:
        self.pair.send(head(DATA, to) + data)

    def heard(self) -> tuple[int, Name, int, bytes]:
        """Kind, origin, value and datagram of what comes next."""
        data = self.pair.recv(100_000)
        _, kind, port, _, _, _, value, addr = HEAD.unpack_from(data)
        return kind, (socket.inet_ntoa(addr[12:]), port), value, data[HEAD.size :]


class Stranger:
    """A UDP socket that says what it likes."""

    made: ClassVar[list[Stranger]] = []

    def __init__(self, to: Name, own: str = "") -> None:
        self.made.append(self)
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind((own, 0))
        self.udp.connect(to)
        self.udp.settimeout(20)

    @property
    def name(self) -> Name:
        found: Name = self.udp.getsockname()
        return found

    def heard(self) -> Envelope:
        found = envelope.opened(self.udp.recv(65536))
        assert found is not None
        return found

    def quiet(self, seconds: float = 0.2) -> bool:
        return not select.select([self.udp], [], [], seconds)[0]


def _accepted(server: Program) -> Stranger:
    """One that has shown a plan, and may go by it."""
    stranger = Stranger(server.name)
    stranger.udp.send(envelope.hello(1, RELIABLE, KEY))
    server.host.serve(5.0)
    assert stranger.heard().kind is Kind.ACCEPT
    return stranger


def _numbered(number: int, payload: bytes, flags: int = 0, session: int = 1) -> bytes:
    """A datagram of `reliable`'s, of its connection 77, by an exchange."""
    return envelope.sealed(
        Kind.DATA, session, reliable.HEADER.pack(reliable.DATA, flags, 77, number, 1) + payload
    )


@pytest.fixture(autouse=True)
def strangers_end() -> Iterator[None]:
    """With the test."""
    yield
    while Stranger.made:
        Stranger.made.pop().udp.close()


def until(true: Callable[[], bool], *hosts: CarrierHost, seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        for host in hosts:
            host.serve(0.005)


Make = Callable[..., Program]


@pytest.fixture
def make_program(make_carrier: MakeCarrier) -> Iterator[Make]:
    """`make_program(kind, mode, key=KEY)`: a socket that such a carrier has."""
    made: list[Program] = []

    def make(
        kind: str, mode: int, key: bytes | None = KEY, options: Iterable[tuple[int, int]] = ()
    ) -> Program:
        made.append(Program(make_carrier(key, command=_COMMANDS[kind]), mode, options))
        return made[-1]

    yield make
    for program in made:
        program.close()


@pytest.fixture(params=["native", "python"])
def server(request: pytest.FixtureRequest, make_program: Make) -> Program:
    """Whose chunnels are required."""
    return make_program(request.param, REQUIRED)


@pytest.fixture(params=["native", "python"])
def client(request: pytest.FixtureRequest, make_program: Make) -> Program:
    return make_program(request.param, PLAN)


class Network:
    """Between a client's carrier and a server's: loses, doubles and reorders."""

    def __init__(self, to: Name, seed: int, loss: float) -> None:
        self.random = random.Random(seed)
        self.loss = loss
        self.inner = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)  # the client's side
        self.inner.bind(("127.0.0.1", 0))
        self.outer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.outer.connect(to)
        self.name: Name = self.inner.getsockname()
        self.client: Name | None = None
        self.held: deque[tuple[float, bool, bytes]] = deque()

    def turn(self) -> None:
        for sock in select.select([self.inner, self.outer], [], [], 0.001)[0]:
            data, name = sock.recvfrom(65536)
            if sock is self.inner:
                self.client = name
            for _ in range(1 + (self.random.random() < 0.1)):
                if self.random.random() >= self.loss:
                    late = 0.02 if self.random.random() < 0.2 else 0.0
                    self.held.append((time.monotonic() + late, sock is self.inner, data))
        now = time.monotonic()
        for _ in range(len(self.held)):
            due, up, data = self.held.popleft()
            if due > now:
                self.held.append((due, up, data))
            elif up:
                self.outer.send(data)
            elif self.client is not None:
                self.inner.sendto(data, self.client)

    def close(self) -> None:
        self.inner.close()
        self.outer.close()


@pytest.mark.parametrize("at_server", ["native", "python"])
@pytest.mark.parametrize("at_client", ["native", "python"])
def test_all_comes_once_and_in_order(make_program: Make, at_client: str, at_server: str) -> None:
    """Both ways at once, through a network that loses a tenth, doubles a tenth and reorders a fifth."""
    server, client = make_program(at_server, REQUIRED), make_program(at_client, PLAN)
    network = Network(server.name, 7, 0.1)
    rng = random.Random(11)
    sizes = [0, 1, 1186, 1187, 5000, 40_000]
    messages = [i.to_bytes(4, "big") + os.urandom(rng.choice(sizes)) for i in range(150)]
    client.plan(network.name)
    sent = {client: 0, server: 0}
    got: dict[Program, list[bytes]] = {client: [], server: []}
    to = {client: network.name, server: network.outer.getsockname()}
    end = time.monotonic() + 60
    while any(len(found) < len(messages) for found in got.values()):
        assert time.monotonic() < end, [len(found) for found in got.values()]
        for program in (client, server):
            program.host.serve()
            if sent[program] < len(messages) and (program is client or got[server]):
                program.send(to[program], messages[sent[program]])
                sent[program] += 1
            while select.select([program.pair], [], [], 0)[0]:
                kind, name, _, data = program.heard()
                assert (kind, name) == (DATA, to[program])
                got[program].append(data)
        network.turn()
    network.close()
    assert got[client] == got[server] == messages
    for program in (client, server):
        assert (program.status.state, program.status.detail) == (READY, "")
        assert [c["type"] for c in program.status.chunnels] == ["reliable"]


@contextlib.contextmanager
def _server_greeted_by(client: Program) -> Iterator[tuple[socket.socket, Envelope, Name]]:
    """A server by hand, the HELLO that has come there, and whence."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        other.settimeout(20)
        client.plan(other.getsockname())
        client.send(other.getsockname(), b"hello")
        data, name = other.recvfrom(65536)
        came = envelope.opened(data)
        assert came is not None and came.kind is Kind.HELLO
        yield other, came, name


def test_a_hello_that_is_lost(client: Program) -> None:
    """What the server does not know yet it has not forgotten: the HELLO is said again."""
    with _server_greeted_by(client) as (other, first, name):
        for kind in (Kind.UNKNOWN, Kind.END):
            other.sendto(envelope.sealed(kind, first.session), name)
        while True:
            came = envelope.opened(other.recv(65536))
            assert came is not None and came.session == first.session
            if came.kind is Kind.HELLO:
                break
        other.sendto(envelope.accept(first.session, RELIABLE, KEY), name)
        client.status.wait(READY)
        assert client.status.detail == ""
        other.sendto(envelope.sealed(Kind.UNKNOWN, first.session), name)
        until(lambda: client.status.detail == "the server has forgotten this session")


@pytest.mark.parametrize("kind", ["native", "python"])
def test_many_speak_with_one(make_carrier: MakeCarrier, make_program: Make, kind: str) -> None:
    """Each has its own session, and what it hears is its own."""
    server = make_program(kind, REQUIRED)
    host = make_carrier(command=_COMMANDS["native"], count=300)
    clients = [Program(host, PLAN) for _ in range(300)]
    for i, client in enumerate(clients):
        client.plan(server.name)
        for word in range(5):
            client.send(server.name, b"%d %d" % (i, word))
    heard = 0
    end = time.monotonic() + 40
    while heard < 5 * len(clients):
        assert time.monotonic() < end, heard
        server.host.serve()
        while select.select([server.pair], [], [], 0.01)[0]:
            _, name, _, data = server.heard()
            server.send(name, data)
            heard += 1
    for i, client in enumerate(clients):
        for word in range(5):
            assert client.heard()[3] == b"%d %d" % (i, word)
        client.close()
    assert server.status.detail == ""
    assert len(server.host.checks) == 1


@pytest.mark.parametrize(
    ("keys", "why"),
    [
        ((KEY, bytes(32)), "the client has another cluster key than the server"),
        ((None, KEY), "the client has no cluster key, and the server has one"),
        ((KEY, None), "the client has a cluster key, and the server has none"),
    ],
)
@pytest.mark.parametrize("at_server", ["native", "python"])
@pytest.mark.parametrize("at_client", ["native", "python"])
def test_who_has_another_key(
    make_program: Make, at_client: str, at_server: str, keys: tuple[bytes | None, bytes | None], why: str
) -> None:
    client, server = make_program(at_client, PLAN, keys[0]), make_program(at_server, REQUIRED, keys[1])
    client.plan(server.name)
    client.send(server.name, b"hello")
    assert client.heard()[:2] == (REFUSAL, server.name)
    client.status.wait(REFUSED)
    assert client.status.detail == f"the server refused: {why}"
    server.status.wait(REFUSED)
    assert why in server.status.detail
    assert not select.select([server.pair], [], [], 0.1)[0]


def test_an_answer_that_is_not_the_server_s(client: Program) -> None:
    """An ACCEPT without the key's mark is as if it had not come; the right one comes through."""
    with _server_greeted_by(client) as (other, came, name):
        assert envelope.read_hello(came, KEY) == (RELIABLE, None)
        for wrong in (None, bytes(32)):
            other.sendto(envelope.accept(came.session, RELIABLE, wrong), name)
        other.sendto(envelope.accept(came.session + 1, RELIABLE, KEY), name)
        other.sendto(b"no carrier's", name)
        time.sleep(0.1)
        assert client.status.state != READY
        other.sendto(envelope.accept(came.session, RELIABLE, KEY), name)
        client.status.wait(READY)
        assert "1 datagrams dropped that did not go by the chunnels (1 addresses)" in client.status.detail


def test_the_agent_says_no(server: Program) -> None:
    server.host.judge = lambda listener, plan: "not here"
    stranger = Stranger(server.name)
    stranger.udp.send(envelope.hello(5, RELIABLE, KEY))
    server.host.serve(5.0)
    came = stranger.heard()
    assert (came.kind, envelope.why_refused(came)) == (Kind.REFUSE, "not here")
    assert [(c["listener"], c["plan"]) for c in server.host.checks] == [(7, RELIABLE)]
    server.status.wait(REFUSED)


def test_a_listener_that_is_another_users(server: Program) -> None:
    """Also one that it comes to be shown later."""
    host, nobody = server.host, 65534
    server.close()
    host.shim.close()
    host.shim = host.new_shim(uid=nobody)
    host.context(listener=7, key=KEY)
    with contextlib.closing(Program(host, REQUIRED)) as program:
        stranger = Stranger(program.name)
        stranger.udp.send(envelope.hello(5, RELIABLE, KEY))
        came = stranger.heard()
        assert came.kind == Kind.REFUSE and "another user's" in envelope.why_refused(came)
        program.status.wait(REFUSED)
        assert "another user's" in program.status.detail
        host.context(listener=7, key=KEY, uids=(nobody,))
        until(lambda: not _unread(host.control, _SIOCOUTQ), host)
        stranger.udp.send(envelope.hello(6, RELIABLE, KEY))
        until(lambda: not stranger.quiet(0), host)
        assert stranger.heard().kind == Kind.ACCEPT


def test_a_client_rule_that_is_another_users(make_program: Make) -> None:
    """Its cluster key is everybody's; see test_trust.py for certificates."""
    for kind in ("native", "python"):
        client = make_program(kind, PLAN)
        client.host.context(listener=9, key=b"another" * 4)
        host = client.host
        host.shim.close()
        host.shim = host.new_shim(uid=65534)
        with contextlib.closing(Program(host, PLAN)) as program:
            stranger = Stranger(program.name)
            program.pair.send(head(TELL, stranger.name, 9) + RELIABLE)
            program.send(stranger.name, b"hello")
            came = stranger.heard()
            assert came.kind == Kind.HELLO and envelope.read_hello(came, KEY) == (RELIABLE, None)


def test_what_has_no_session(server: Program) -> None:
    """It is told so, a hundred times a second at the most; what makes no sense gets no answer."""
    stranger = Stranger(server.name)
    for nonsense in (b"\xbeBRD", b"\xbeBRD\x09" + bytes(8), envelope.sealed(Kind.HELLO, 1, b"\x81\xa1v\x01")):
        stranger.udp.send(nonsense)
    for kind in (Kind.ACCEPT, Kind.REFUSE, Kind.UNKNOWN, Kind.END, Kind.ASK):
        stranger.udp.send(envelope.sealed(kind, 1))
    server.has_read()
    assert stranger.quiet()
    for i in range(250):
        stranger.udp.send(envelope.sealed(Kind.DATA, i))
    server.has_read()
    count = 0
    assert not stranger.quiet(20)  # the carrier has yet to start
    while not stranger.quiet():
        assert stranger.heard().kind is Kind.UNKNOWN
        count += 1
    assert count == 100
    assert server.host.checks == []


def test_strangers_are_told_why_a_hundred_times_a_second(server: Program) -> None:
    """What they are told may be longer than what they said, and nobody knows whose address they gave."""
    stranger = Stranger(server.name)
    for i in range(250):
        stranger.udp.send(envelope.hello(i, RELIABLE, None))
    server.has_read()
    count = 0
    assert not stranger.quiet(20)  # the carrier has yet to start
    while not stranger.quiet():
        assert stranger.heard().kind is Kind.REFUSE
        count += 1
    assert count == 100


def test_one_question_for_a_plan(server: Program) -> None:
    """However many show it; once answered, none for a while."""
    strangers = [Stranger(server.name) for _ in range(50)]
    for i, stranger in enumerate(strangers):
        stranger.udp.send(envelope.hello(i, RELIABLE, KEY))
    server.has_read()
    server.host.serve(5.0)
    for i, stranger in enumerate(strangers):
        came = stranger.heard()
        assert (came.kind, came.session) == (Kind.ACCEPT, i)
        assert envelope.is_accepted(came, RELIABLE, KEY)
    late = Stranger(server.name)
    late.udp.send(envelope.hello(99, RELIABLE, KEY))
    assert late.heard().kind is Kind.ACCEPT
    assert len(server.host.checks) == 1


def test_sessions_of_one_address_are_few(server: Program) -> None:
    """Those that came first make room."""
    stranger = Stranger(server.name)
    for session in range(10):
        stranger.udp.send(envelope.hello(session, RELIABLE, KEY))
        until(lambda: not stranger.quiet(0), server.host)
        assert stranger.heard().kind is Kind.ACCEPT
    known = 0
    for session in range(10):
        stranger.udp.send(envelope.sealed(Kind.DATA, session, b"x"))
        server.has_read()
        if stranger.quiet(0.05):
            known += 1
        else:
            assert stranger.heard().kind is Kind.UNKNOWN
    assert 1 <= known <= 5


def test_required_and_preferred(make_program: Make) -> None:
    for kind in ("native", "python"):
        required, maybe = make_program(kind, REQUIRED), make_program(kind, MAYBE)
        for program in (required, maybe):
            stranger = Stranger(program.name)
            stranger.udp.send(b"plain")
            if program is maybe:
                assert program.heard() == (DATA, stranger.name, 0, b"plain")
            program.send(stranger.name, b"answer")
            assert stranger.quiet() == (program is required)
        maybe.status.wait(PASSED)
        until(lambda r=required: r.status.detail.startswith("2 datagrams dropped"))  # type: ignore[misc]
        assert "(1 addresses)" in required.status.detail
        assert required.status.state == REFUSED


def test_who_has_a_plan_is_not_heard_plainly(make_program: Make) -> None:
    for kind in ("native", "python"):
        server = make_program(kind, MAYBE)
        stranger = _accepted(server)
        stranger.udp.send(b"plain")
        until(lambda s=server: "1 datagrams dropped" in s.status.detail)  # type: ignore[misc]
        assert not select.select([server.pair], [], [], 0.1)[0]


def test_without_an_agent(server: Program) -> None:
    """What it has judged goes on; what not is refused; and the program is to tell the next one."""
    known, late, other = (Stranger(server.name) for _ in range(3))
    known.udp.send(envelope.hello(1, RELIABLE, KEY))
    server.host.serve(5.0)
    assert known.heard().kind is Kind.ACCEPT
    server.host.control.close()
    assert server.heard()[0] == NO_AGENT
    late.udp.send(envelope.hello(2, RELIABLE, KEY))
    assert late.heard().kind is Kind.ACCEPT
    unknown = plan_of(chunnel("reliable", "brel/1", "native", mtu=700, give_up=30.0))
    other.udp.send(envelope.hello(3, unknown, KEY))
    came = other.heard()
    assert came.kind is Kind.REFUSE and "agent is gone" in envelope.why_refused(came)
    assert server.heard()[0] == NO_AGENT, "again and again"


def test_nobody_there(client: Program) -> None:
    """A connected socket's program hears of it, as of the kernel's error."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as gone:
        gone.bind(("127.0.0.1", 0))
        nobody: Name = gone.getsockname()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.connect(nobody)
        program, _ = client.host.carry_datagrams(udp, mode=PLAN)
        program.settimeout(20)
        program.send(head(TELL, nobody) + RELIABLE)
        program.send(head(DATA, nobody) + b"hello")
        data = program.recv(1000)
        assert HEAD.unpack_from(data)[1] == ERROR
        assert HEAD.unpack_from(data)[6] == errno.ECONNREFUSED
        program.close()


def test_what_is_unsaid_is_said_after_the_program_has_closed(client: Program, make_program: Make) -> None:
    server = make_program("python", REQUIRED)
    network = Network(server.name, 3, 0.1)
    client.plan(network.name)
    for i in range(40):
        client.send(network.name, b"%d" % i + bytes(3000))
    client.pair.close()
    got = 0
    end = time.monotonic() + 30
    while got < 40:
        assert time.monotonic() < end, got
        network.turn()
        server.host.serve()
        while select.select([server.pair], [], [], 0)[0]:
            assert server.heard()[3] == b"%d" % got + bytes(3000)
            got += 1
    network.close()


@pytest.mark.parametrize("kind", ["native", "python"])
def test_a_server_s_socket_that_goes_to_another_carrier(make_carrier: MakeCarrier, kind: str) -> None:
    """The one before has something to say when its pair is closed; the socket is no longer its own."""
    host = make_carrier(command=_COMMANDS[kind])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        udp.bind(("127.0.0.1", 0))
        pair, status = host.carry_datagrams(udp)
        stranger = Stranger(udp.getsockname())
        stranger.udp.send(envelope.hello(1, RELIABLE, KEY))
        host.serve(5.0)
        assert stranger.heard().kind is Kind.ACCEPT
        hello = struct.pack(">BBIII", 3, 0, 9, 0, 0)
        stranger.udp.send(envelope.sealed(Kind.DATA, 1) + hello)
        assert stranger.heard().kind is Kind.DATA
        pair.send(head(DATA, stranger.name) + b"is not acknowledged")
        assert stranger.heard().kind is Kind.DATA
        pair.close()
        end = time.monotonic() + 0.5
        while time.monotonic() < end:
            with pytest.raises(OSError, match="not connected"):
                udp.getpeername()
            time.sleep(0.02)
        assert status.state == READY


def test_a_program_that_sends_faster_than_the_network_waits(client: Program) -> None:
    """Its pair fills up, and nothing is lost: what is under way, what waits, and no more."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        client.plan(other.getsockname())
        client.pair.setblocking(False)
        sent = 0
        end = time.monotonic() + 2
        while time.monotonic() < end and sent < 20_000:
            try:
                client.send(other.getsockname(), bytes(1000))
                sent += 1
            except BlockingIOError:
                time.sleep(0.01)
        assert 500 < sent < 5000
        assert client.status.detail == ""


def test_a_flood_for_the_carrier_beside_keeps_no_program_waiting(make_program: Make) -> None:
    """It takes less than strangers can send: what waits for it then is theirs, not the program's."""
    server = make_program("native", MAYBE)
    client, flood = _accepted(server), Stranger(server.name)
    client.udp.send(_numbered(1, b"question"))
    assert server.heard()[3] == b"question"
    beside, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with beside, theirs:
        socket.send_fds(server.pair, [HEAD.pack(0xBD47, BESIDE, 0, 0, 0, 0, 0, bytes(16))], [theirs.fileno()])
        beside.settimeout(20)
        server.send(("127.0.0.1", 9), b"first")
        assert beside.recv(100)[HEAD.size :] == b"first"
        for i in range(2000):
            flood.udp.send(bytes(1000))
            if i % 50 == 0:
                time.sleep(0.002)
        server.send(client.name, b"answer")
        while not client.heard().body.endswith(b"answer"):
            pass  # acknowledgements
        # Nor is there no room for what the program has to say there, behind it.
        server.send(("127.0.0.1", 9), b"to another")
        found = b""
        while not found.endswith(b"to another"):
            found = beside.recv(2000)


@pytest.mark.parametrize("kind", ["native", "python"])
def test_datagrams_that_the_kernel_has_merged(make_program: Make, kind: str) -> None:
    """The program has set UDP_GRO, and does not hear how long each was."""
    options = (socket.SOL_SOCKET, SO_TIMESTAMP), (socket.IPPROTO_UDP, UDP_GRO)
    server = make_program(kind, MAYBE, options=options)
    stranger = Stranger(server.name)
    stranger.udp.setsockopt(socket.IPPROTO_UDP, UDP_SEGMENT, 100)
    sent = os.urandom(1050)
    stranger.udp.send(sent)
    got = [server.heard()[3] for _ in range(11)]
    assert got == [sent[at : at + 100] for at in range(0, 1050, 100)]
    stranger.udp.send(b"")
    assert server.heard()[3] == b""


@pytest.mark.parametrize("kind", ["native", "python"])
def test_datagrams_that_the_program_sends_in_one_call(make_program: Make, kind: str) -> None:
    """UDP_SEGMENT: with a plan and without one."""
    client, server = make_program(kind, PLAN), make_program(kind, REQUIRED)
    sent = os.urandom(5000)
    client.plan(server.name)
    client.pair.send(head(DATA, server.name, 1200) + sent)
    until(lambda: server.status.state == READY, client.host, server.host)
    got = [server.heard()[3] for _ in range(5)]
    assert got == [sent[at : at + 1200] for at in range(0, 5000, 1200)]
    plain = make_program(kind, MAYBE)
    stranger = Stranger(plain.name)
    for data, each, sizes in ((sent, 2500, [2500, 2500]), (sent, 5000, [5000]), (b"", 100, [0])):
        plain.pair.send(head(DATA, stranger.name, each) + data)
        assert [len(stranger.udp.recv(65536)) for _ in sizes] == sizes


def _memory(server: Program) -> int:
    """MB that its carrier has."""
    with open(f"/proc/{server.host.process.pid}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20


def _floods(server: Program, session: int, datagrams: Iterable[bytes], pause: Callable[[], None]) -> Stranger:
    """One that has agreed, and goes on with these."""
    stranger = Stranger(server.name)
    stranger.udp.send(envelope.hello(session, LARGE, KEY))
    server.host.serve(0.0 if session > 1 else 5.0)
    assert stranger.heard().kind is Kind.ACCEPT
    for i, data in enumerate(datagrams):
        stranger.udp.send(data)
        if i % 4 == 3:
            pause()
    return stranger


def _told(server: Program) -> Callable[[], None]:
    """Waits until the carrier has read all that was sent there."""
    probe = Stranger(server.name)

    def wait() -> None:
        probe.udp.send(envelope.sealed(Kind.DATA, 99))  # of a session that is not there
        time.sleep(0.001)
        with contextlib.suppress(TimeoutError):
            probe.udp.settimeout(0.02)
            probe.udp.recv(100)

    return wait


def test_what_strangers_make_a_carrier_keep_is_bounded(server: Program) -> None:
    """Far ahead of what is wanted, by many at once; whoever goes on in order gets on all the same."""
    payload, wait = bytes(59_000), _told(server)
    before = 0
    for session in range(1, 13):
        ahead = (_numbered(n, payload, session=session) for n in range(2, 300))
        _floods(server, session, ahead, wait)
        before = before or _memory(server)
    assert _memory(server) - before < 90  # 200 without a bound
    good = _floods(server, 100, (), wait)
    for n in range(1, 21):
        good.udp.send(_numbered(n, b"part", reliable.MORE if n % 2 else 0, session=100))
    assert [server.heard()[3] for _ in range(10)] == [b"partpart"] * 10


def test_messages_that_do_not_end(server: Program) -> None:
    """No program could be given a longer one than UDP has, and of all only so many are kept."""
    wait = _told(server)
    long = (_numbered(n, bytes(30_000), reliable.MORE) for n in range(1, 4))
    _floods(server, 1, long, wait)
    until(lambda: "a message of more than 65507 bytes came" in server.status.detail, server.host)
    before = _memory(server)
    many = [
        _floods(server, session, [_numbered(1, bytes(59_000), reliable.MORE, session=session)], wait)
        for session in range(2, 700)
    ]
    until(lambda: "too many messages are not whole" in server.status.detail, server.host)
    assert _memory(server) - before < 200  # with all that Python has of 700 sessions
    many[-1].udp.send(_numbered(2, b"end", session=699))
    assert server.heard()[3] == bytes(59_000) + b"end"
    many[0].udp.send(_numbered(2, b"end", session=2))  # the one that began first is gone
    while True:
        if (came := many[0].heard()).kind is Kind.UNKNOWN:
            break
        assert came.kind is Kind.DATA


def test_who_may_be_nobody_makes_room_first(server: Program) -> None:
    """HELLOs said again from forged addresses: before one that has answered, and long before its time."""
    good = _accepted(server)
    good.udp.send(_numbered(1, b"question"))
    assert server.heard()[3] == b"question"
    server.send(good.name, b"answer")
    while not good.heard().body.endswith(b"answer"):
        pass
    good.udp.send(envelope.sealed(Kind.DATA, 1, reliable.HEADER.pack(reliable.ACK, 0, 77, 1024, 2)))
    for i in range(1024):
        forged = Stranger(server.name, f"127.1.{i >> 8}.{i & 255}")
        for session in range(4):
            forged.udp.send(envelope.hello(session, RELIABLE, KEY))
            assert i == 1023 or forged.heard().kind is Kind.ACCEPT
        forged.udp.close()
    late = Stranger(server.name)
    end = time.monotonic() + 10
    while late.quiet(0.5):
        assert time.monotonic() < end
        late.udp.send(envelope.hello(1, RELIABLE, KEY))
    assert late.heard().kind is Kind.ACCEPT
    good.udp.send(_numbered(2, b"another"))
    assert server.heard()[3] == b"another"


def test_carriers_end(make_program: Make) -> None:
    """When the program has closed and the agent is gone, with nothing left open."""
    for kind in ("native", "python"):
        server = make_program(kind, REQUIRED)
        _accepted(server)
        server.pair.close()
        server.host.close()


def test_what_was_sent_before_the_close_goes(kind_program: Program) -> None:
    """Also where something lay unread: the kernel tells of that before it gives what was sent."""
    program = kind_program
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
        other.bind(("127.0.0.1", 0))
        other.settimeout(20)
        name: Name = other.getsockname()
        program.send(name, b"first")
        assert other.recv(100) == b"first"
        other.sendto(b"unread", program.name)
        assert select.select([program.pair], [], [], 20)[0]
        os.kill(program.host.process.pid, signal.SIGSTOP)  # it is busy with others
        try:
            for i in range(10):
                program.send(name, b"%d" % i)
            program.pair.close()
        finally:
            os.kill(program.host.process.pid, signal.SIGCONT)
        assert [other.recv(100) for _ in range(10)] == [b"%d" % i for i in range(10)]


@pytest.fixture(params=["native", "python"])
def kind_program(request: pytest.FixtureRequest, make_program: Make) -> Program:
    """One that is a client's, whose destinations know of no chunnels."""
    return make_program(request.param, PLAN)
