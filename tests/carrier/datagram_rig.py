"""A carrier with a UDP socket of a program's, and strangers who speak to it."""

from __future__ import annotations

import select
import socket
import struct
import termios
import time
from collections.abc import Callable, Iterable, Iterator
from typing import ClassVar, Final

import pytest

from bertha_socket.carrier import envelope
from bertha_socket.carrier.envelope import Envelope, Kind
from bertha_socket.chunnels import reliable
from tests.carrier.conftest import _COMMANDS, KEY, MakeCarrier
from tests.carrier.host import (
    PLAN,
    REQUIRED,
    CarrierHost,
    chunnel,
    plan_of,
    wait_until_read,
)

HEAD: Final = struct.Struct("=HHHHIIQ16s")
DATA, TELL, ERROR, REFUSAL, NO_AGENT, BESIDE = 1, 2, 3, 4, 5, 6
UDP_SEGMENT, UDP_GRO, SO_TIMESTAMP = 103, 104, 29  # udp(7), socket(7)
RELIABLE = plan_of(chunnel("reliable", "brel/1", "native", mtu=1200, give_up=30.0))
LARGE = plan_of(chunnel("reliable", "brel/1", "native", mtu=60_000, give_up=30.0))
_V4 = bytes(10) + b"\xff\xff"
Name = tuple[str, int]


def head(kind: int, name: Name, value: int = 0) -> bytes:
    """As struct bertha_dgram."""
    return HEAD.pack(0xBD47, kind, name[1], 0, 0, 0, value, _V4 + socket.inet_aton(name[0]))


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
        wait_until_read(host.shim)

    def has_read(self) -> None:
        """Waits until its carrier has what strangers have sent."""
        wait_until_read(self.udp, termios.FIONREAD)

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


def accepted(server: Program) -> Stranger:
    """One that has shown a plan, and may go by it."""
    stranger = Stranger(server.name)
    stranger.udp.send(envelope.hello(1, RELIABLE, KEY))
    server.host.serve(5.0)
    assert stranger.heard().kind is Kind.ACCEPT
    return stranger


def numbered(number: int, payload: bytes, flags: int = 0, session: int = 1) -> bytes:
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
