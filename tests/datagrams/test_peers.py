"""What the owner of a UDP socket's exchanges hears, where many datagrams are read at once."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest

from bertha_socket.carrier import envelope
from bertha_socket.carrier.envelope import Kind
from bertha_socket.carrier.exchange import Exchange
from bertha_socket.carrier.loop import Loop
from bertha_socket.carrier.peers import ROUNDS_MAX, Peers, Place, text_of
from bertha_socket.carrier.session import Mode
from bertha_socket.chunnels import Context
from tests.carrier.host import plan_of

PLAN = plan_of()


class Owner(Peers):
    """A client's, which reads all that is there in one go."""

    def __init__(self, loop: Loop, to: socket.socket) -> None:
        udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        udp.connect(to.getsockname())
        super().__init__(loop, udp, "client", Mode.REQUIRED)
        self._rounds = ROUNDS_MAX
        self.heard: list[Any] = []
        self.exchange = Exchange(Context("client", None), None, PLAN)
        place = self._place(to.getsockname())
        self._add(place, self.exchange)
        self._current[place] = self.exchange
        self.exchange.start()
        self._settle(place, self.exchange)
        self._watch()
        self.heard.clear()

    def _risen(self, place: Place, exchange: Exchange, items: list[Any]) -> None:
        self.heard += items

    def _is_ready(self, place: Place, exchange: Exchange) -> None:
        self.heard.append("ready")

    def _has_failed(self, place: Place, exchange: Exchange) -> None:
        self.heard.append(f"failed: {exchange.detail}")

    def close(self) -> None:
        """Lets go of everything."""
        self._end()


@pytest.fixture
def other() -> Iterator[socket.socket]:
    """The server's socket."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as found:
        found.bind(("127.0.0.1", 0))
        found.settimeout(5)
        yield found


@pytest.fixture
def loop() -> Iterator[Loop]:
    """Of this thread."""
    found = Loop()
    yield found
    found.close()


@pytest.fixture
def owner(loop: Loop, other: socket.socket) -> Iterator[Owner]:
    """Its HELLO has come."""
    found = Owner(loop, other)
    yield found
    found.close()


def _answer(owner: Owner, other: socket.socket, *said: bytes) -> None:
    hello, name = other.recvfrom(65536)
    came = envelope.opened(hello)
    assert came is not None and came.kind is Kind.HELLO
    assert text_of(name) == text_of(owner.udp.getsockname())
    for data in said:
        other.sendto(data, name)


def test_a_batch_is_settled_once(loop: Loop, owner: Owner, other: socket.socket) -> None:
    session = owner.exchange.session
    data = [envelope.sealed(Kind.DATA, session, b"%d" % i) for i in range(5)]
    _answer(owner, other, envelope.accept(session, PLAN, None), *data)
    loop.turn(5)
    assert owner.heard == ["ready", b"0", b"1", b"2", b"3", b"4", "ready"]


def test_what_begins_and_ends_in_one_batch(loop: Loop, owner: Owner, other: socket.socket) -> None:
    """That both had agreed is told before that it is over."""
    session = owner.exchange.session
    said = [envelope.sealed(Kind.DATA, session, b"all"), envelope.sealed(Kind.END, session)]
    _answer(owner, other, envelope.accept(session, PLAN, None), *said)
    loop.turn(5)
    assert owner.heard == ["ready", b"all", "failed: "]


def test_what_fails_is_told_once(loop: Loop, owner: Owner, other: socket.socket) -> None:
    session = owner.exchange.session
    unknown = envelope.sealed(Kind.UNKNOWN, session)
    data = envelope.sealed(Kind.DATA, session, b"data")
    _answer(owner, other, envelope.accept(session, PLAN, None), data, unknown, unknown, data)
    loop.turn(5)
    assert owner.heard == ["ready", b"data", "failed: the server has forgotten this session"]


def test_addresses_are_remembered_within_bounds(owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bertha_socket.carrier.peers.PLACES_MAX", 8)
    for port in range(1, 100):
        place = owner._place(("127.0.0.1", port))
        assert owner._name(place) == ("127.0.0.1", port)
        assert len(owner._places) <= 8 and len(owner._names) <= 8
